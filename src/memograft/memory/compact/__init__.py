"""Contexts that are carried as keys and values: all of them, or a selection that is fitted to attend alike."""
