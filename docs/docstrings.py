"""An extension of griffe, which reads the docstrings for the site: it renames the heading "Example:" to "Examples:".

griffe renders doctest code as code only under "Examples:"; the docstrings use the more common "Example:".
"""

from __future__ import annotations

import re
from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Renames the sections of every docstring."""

    def on_object(self, *, obj: griffe.Object, **_others: Any) -> None:
        """Rename the section of one object, after its members were read."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
