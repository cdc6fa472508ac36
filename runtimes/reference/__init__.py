"""A small, strictly conforming Open Inference Protocol server: the yardstick that the suites are tested against."""
