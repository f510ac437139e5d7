"""An extension of griffe, which reads the docstrings for the site: it takes the heading "Example:" for "Examples:".

griffe only renders the second as code that is run with its output; the first is Python's most common spelling.
"""

from __future__ import annotations

import re
from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Renames the sections of every docstring that is read."""

    def on_object(self, *, obj: griffe.Object, **_others: Any) -> None:
        """Called for each object, once its members are there."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
