"""GPU products, and the GPUs that exist in the cluster."""
