"""How requests get from here to a service on a cluster."""
