"""The API: the CRD as typed Python, what is read from an object and what is written to its status."""
