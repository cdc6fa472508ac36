"""A server under test: where it is, how it is asked, what it should answer."""
