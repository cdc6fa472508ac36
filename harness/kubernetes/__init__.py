"""A Kubernetes cluster as seen through its API: one client, KServe's objects, pods, events, the autoscaler's model."""
