"""The README of an integration and the examples in its docstrings, which run and print what is written; its imports."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

__all__ = ["Readme"]

_SNIPPET = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.M | re.S)
# What takes long to import: an integration loads it with the first model, store or client.
_HEAVY = ("torch", "transformers", "peft", "faiss", "sklearn", "sentence_transformers", "llguidance", "openai")
_EXPECTED = re.compile(r"^print\(.*\)  # (.+)$", re.M)


class Readme:
    """Tests of one integration, which the subclass names."""

    root: ClassVar[Path]  # of the integration, with its README.md
    package: ClassVar[str]

    @property
    def readme(self) -> str:
        """The text of the README."""
        return (self.root / "README.md").read_text(encoding="utf-8")

    def test_snippets_print_what_they_say(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)  # for files that they write
        scope: dict[str, object] = {"__name__": "readme"}  # the snippets share their variables
        snippets = _SNIPPET.findall(self.readme)
        assert len(snippets) == self.readme.count("```python") > 4
        for code, output in snippets:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(code, "README.md", "exec", dont_inherit=True), scope)
            assert printed.getvalue().splitlines() == (output.splitlines() or _EXPECTED.findall(code))

    def test_files_that_are_named_exist(self) -> None:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", self.readme):
            assert (self.root / target).exists(), f"the README links to {target}, which does not exist"

    def test_docstring_examples_run(self) -> None:
        package = importlib.import_module(self.package)
        found = {name for _, name, _ in pkgutil.iter_modules(package.__path__)}
        results = {name: doctest.testmod(importlib.import_module(f"{self.package}.{name}")) for name in found}
        assert [name for name, result in results.items() if result.failed] == []
        assert sum(result.attempted for result in results.values()) > 4

    def test_importing_every_name_loads_nothing_heavy(self) -> None:
        code = f"import sys; from {self.package} import *; print([m for m in {_HEAVY} if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True)
        assert done.stdout.strip() == "[]"
