"""Plans to Kubernetes objects, and what differs between an object and its manifest."""
