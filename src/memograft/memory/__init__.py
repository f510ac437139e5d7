"""Memories: ways to put a context into the model, and their storage."""

SHIPPED = (
    "memograft.memory.fastmem.memory",
    "memograft.memory.compact.memory",
    "memograft.memory.gist.memory",
    "memograft.memory.mac.memory",
)  # modules that define the kinds of memory in saved settings
