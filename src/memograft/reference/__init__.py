"""The parts of `memograft.datastore`; nothing here is public."""
