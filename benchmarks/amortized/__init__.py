"""Parts of `benchmarks/mac.py`."""
