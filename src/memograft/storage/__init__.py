"""Files and locks for all stores: atomic writes, checksums, and locks between threads and processes."""
