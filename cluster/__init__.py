"""Clusters: every provider yields a kubeconfig and the address of an ingress."""
