"""Load into numbers of replicas: what is read from the engines, the rule, and the loop around it."""
