"""The embedded cluster's pods: processes, probes, storage, devices."""
