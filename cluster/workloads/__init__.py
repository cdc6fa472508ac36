"""What is put into a cluster beside the services: models, load generators; and waiting for it."""
