"""Every snippet of the README runs and prints what it says it prints; so do the examples of docstrings."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import re
from pathlib import Path

import pytest
from llama_index.core import Settings

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPET = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.M | re.S)
EXPECTED = re.compile(r"^print\(.*\)  # (.+)$", re.M)


def test_snippets_print_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a bank is a folder
    monkeypatch.setattr(Settings, "_llm", None)  # a snippet sets it
    scope: dict[str, object] = {"__name__": "readme"}
    for code, output in SNIPPET.findall(README):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec", dont_inherit=True), scope)
        assert printed.getvalue().splitlines() == (output.splitlines() or EXPECTED.findall(code))


def test_the_first_example_takes_twelve_lines() -> None:
    first, _ = SNIPPET.findall(README)[0]
    assert len([line for line in first.splitlines() if line]) <= 12


def test_files_that_are_named_exist() -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", README):
        assert (ROOT / target).exists(), f"the README links to {target}, which does not exist"


@pytest.mark.parametrize("name", ["base"])
def test_examples_of_docstrings_run(name: str) -> None:
    failed, run = doctest.testmod(importlib.import_module(f"llama_index.llms.memograft.{name}"))
    assert run
    assert failed == 0
