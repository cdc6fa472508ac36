"""What scenario files are made of: services, steps, and the values that people write."""
