"""From plans to Kubernetes objects, and the differences between an object and its manifest."""
