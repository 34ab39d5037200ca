"""Who gets the GPUs when there are too few for all deployments. Pure."""
