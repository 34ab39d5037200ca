"""The program inside engine and inspection pods: one archive that needs only Python's standard library."""

__version__ = "0.1.0"
