"""Measurements that anyone can repeat: python -m bench.NAME --help."""
