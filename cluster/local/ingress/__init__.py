"""The embedded cluster's way in: routes by host, queues, HTTP/1.1, HTTP/2 and gRPC."""
