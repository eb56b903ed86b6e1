"""`python -m bench`.  Kept bare, since multiprocessing loads it again in every process."""

if __name__ == "__main__":
    import sys

    from bench.cli import main

    sys.exit(main())
