"""Measurements of what the operator promises; `python -m bench.NAME`. Not part of the installed package."""
