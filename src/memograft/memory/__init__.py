"""Ways to put a context into the model, and what they need. `fastmem` is the first."""
