"""Serving: requests of many threads and tasks are answered by one thread, which alone uses the model."""
