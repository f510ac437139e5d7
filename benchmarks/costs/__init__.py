"""Rows of `benchmarks/speed.py`."""
