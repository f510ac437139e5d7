"""Ways to put a context into the model, and how they are kept. `fastmem` is the first."""

SHIPPED = ("memograft.memory.fastmem.memory",)  # where the kinds are that saved settings may name
