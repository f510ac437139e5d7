"""Files that are whole or not there, still what was written, and one process's at a time; for every store."""
