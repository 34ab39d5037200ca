"""What runs inside engine and inspection pods: one archive that needs nothing but Python's standard library."""

__version__ = "0.1.0"
