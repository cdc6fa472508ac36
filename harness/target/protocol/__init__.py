"""Open Inference Protocol (v2) clients."""
