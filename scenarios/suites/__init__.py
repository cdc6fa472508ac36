"""One module or package a suite; each yields records while it runs."""
