"""The README and the docstrings, by the conformance suite."""

from __future__ import annotations

from pathlib import Path

from conformance.readme import Readme


class TestReadme(Readme):
    root = Path(__file__).parents[2]
    package = "langchain_memograft"
