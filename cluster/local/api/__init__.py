"""The embedded cluster's Kubernetes API: store, schemas, patches, selectors, the HTTPS server."""
