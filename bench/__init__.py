"""The comparison with other ways between processes: `python -m bench`.  README.md explains it."""
