"""What becomes of the others when one process is killed: ``python -m bench.kills``."""
