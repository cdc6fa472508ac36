"""The embedded cluster's controllers: InferenceServices, revisions, traffic, autoscaling."""
