"""Suites that judge a serving cluster, and ready-made scenario files."""
