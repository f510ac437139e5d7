"""Naive versions of each method, by another route than ours; ours must match them."""
