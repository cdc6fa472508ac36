"""The embedded cluster: a small KServe of real processes behind a real Kubernetes API, in one process tree."""
