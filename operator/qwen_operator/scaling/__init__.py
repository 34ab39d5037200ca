"""Scaling: from the engines' metrics to a number of replicas. Pure; `controller/` has the loop around it."""
