"""Builders of small models, deterministic from their seeds, with golden inputs and outputs."""
