"""What everything else stands on: errors, units, names of columns, files. It imports nothing of the project."""
