"""The parts of `memograft.vector_store`; nothing here is public."""
