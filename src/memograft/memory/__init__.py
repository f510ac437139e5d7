"""Ways to put a context into the model, and how they are kept. `fastmem` is the first."""
