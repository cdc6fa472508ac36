"""Ready-made scenario files."""
