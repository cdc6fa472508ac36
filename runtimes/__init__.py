"""Reference runtimes, one folder each; every one runs in its own environment."""
