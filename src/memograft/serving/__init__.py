"""Requests of many threads and tasks, one thread that touches the model, and what waits for its answers."""
