"""A scenario file as a whole: read, checked line by line, written out again."""
