"""Load to desired replicas: the policy, what it sees, and the loop around it."""
