"""Memories: ways to put a context into the model, and their storage."""

# Modules that define the kinds of memory in saved settings.
SHIPPED = ("memograft.memory.fastmem.memory", "memograft.memory.gist.memory")
