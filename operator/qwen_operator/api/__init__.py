"""The API: the CRD as typed Python, how the operator reads an object, and what it writes to the status."""
