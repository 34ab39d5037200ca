"""What Prometheus reads of the operator."""
