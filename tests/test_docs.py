"""Every Python snippet of README and docs runs, and prints what it says it prints; so do the docstrings' examples."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import pkgutil
import re
from pathlib import Path

import pytest

import memograft

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPET = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
EXPECTED = re.compile(r"^print\(.*\)  # (.+)$", re.M)
MODULES = [m.name for m in pkgutil.walk_packages(memograft.__path__, "memograft.") if not m.name.endswith("__main__")]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_snippets_print_what_they_say(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # for what they write
    scope: dict[str, object] = {}  # later snippets of a page go on where earlier ones ended
    for code in SNIPPET.findall(page.read_text(encoding="utf-8")):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page.name, "exec"), scope)
        assert printed.getvalue().splitlines() == EXPECTED.findall(code)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module)
    assert failed == 0
