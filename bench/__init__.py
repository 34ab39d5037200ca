"""Measurements that anyone can repeat: python -m bench.NAME --help. Not part of the installed package."""
