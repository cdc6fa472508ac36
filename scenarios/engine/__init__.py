"""Carries out a scenario: the cluster, the services, the steps, the run directory."""
