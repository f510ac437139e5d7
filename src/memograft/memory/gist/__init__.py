"""Gist tokens: a document as the keys and values of a few trained tokens."""
