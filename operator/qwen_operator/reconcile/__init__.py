"""The pure core of reconcile: decides from one observation what to do and what the status says."""
