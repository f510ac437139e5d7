"""Asking many questions in many ways and counting the right answers; `memograft eval` is its command."""
