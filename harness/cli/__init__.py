"""The command line: the only room that looks at all the others."""
