"""The README's code runs, in one go, and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_readme_prints_what_it_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a bank is a folder
    namespace: dict[str, Any] = {"__name__": "readme"}
    blocks = re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", README, re.S)
    assert len(blocks) == 5
    for code, output in blocks:
        exec(compile(code, "README.md", "exec", dont_inherit=True), namespace)
        expected = output or "".join(f"{said}\n" for said in re.findall(r"^print\(.*\)  # (.*)$", code, re.M))
        assert capsys.readouterr().out == expected


@pytest.mark.parametrize("name", ["_datastore", "chains", "chat_models", "llms"])
def test_docstrings_print_what_they_say(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(f"langchain_memograft.{name}"))
    assert tried
    assert not failed
