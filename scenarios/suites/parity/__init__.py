"""Whether a service gives the numbers that the model's framework gives offline."""
