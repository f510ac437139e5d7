"""Independent, naive implementations of each method, which Memograft's must match."""
