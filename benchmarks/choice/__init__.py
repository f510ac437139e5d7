"""Parts of `rtd_choice.py`."""
