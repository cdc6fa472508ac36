"""What people and machines read of a run: HTML, Markdown, JUnit and JSON, each a function of the run directory."""
