"""One module for each transport.  Nothing is imported here: a worker loads its own one alone."""
