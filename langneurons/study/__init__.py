"""A whole study from one file: planned, run, resumed, compared."""
