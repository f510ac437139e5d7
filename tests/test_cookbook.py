"""Every notebook of the cookbook runs, and prints the stored outputs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

COOKBOOK = Path(__file__).resolve().parent.parent / "cookbook"
NOTEBOOKS = sorted(COOKBOOK.glob("*.ipynb"))
_VOLATILE = re.compile(r"\d+(\.\d+)? ?(ms|seconds|s)\b|0x[0-9a-f]+|\b[0-9a-f]{8}-[0-9a-f-]{27}\b")


def printed(notebook: Any) -> list[str]:
    """The output of each code cell, without times and ids, which differ between runs."""
    texts = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            shown = [o.text if o.output_type == "stream" else o.data.get("text/plain", "") for o in cell.outputs]
            texts.append(_VOLATILE.sub("~", "".join(shown)))
    return texts


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_notebooks_print_what_they_show(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(COOKBOOK)
    from execute import ENVIRONMENT, execute

    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "")  # restored afterwards
    notebook = execute(file, tmp_path)
    assert not [o.text for cell in notebook.cells for o in cell.get("outputs", ()) if o.get("name") == "stderr"]
    assert printed(notebook) == printed(nbformat.read(file, as_version=4))


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_notebooks_are_stored_with_outputs_worth_reading(file: Path) -> None:
    code = [cell for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
    assert sum(bool(cell.outputs) for cell in code) >= 3
    assert all(o.output_type != "error" for cell in code for o in cell.outputs)
    assert not re.search(r"/(root|home|work|Users|tmp)/", file.read_text(encoding="utf-8"))


def test_there_are_as_many_as_the_readme_of_the_cookbook_says() -> None:
    listed = re.findall(r"\]\(([^)]+\.ipynb)\)", (COOKBOOK / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == [file.name for file in NOTEBOOKS]
