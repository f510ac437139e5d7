"""Every Python snippet of README and docs runs and prints what is written; so do the docstrings' examples."""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib
import io
import pkgutil
import re
from pathlib import Path

import pytest

import memograft
import memograft.errors

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE = ROOT / "docs" / "reference"
LINKING = [
    *PAGES,
    *sorted(REFERENCE.glob("*.md")),
    *(
        ROOT / name
        for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "benchmarks/LOG.md", "cookbook/README.md")
    ),
]
SNIPPET = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
EXPECTED = re.compile(r"^print\(.*\)  # (.+)$", re.M)
MODULES = [m.name for m in pkgutil.walk_packages(memograft.__path__, "memograft.") if not m.name.endswith("__main__")]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_snippets_print_what_they_say(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # for files that they write
    scope: dict[str, object] = {}  # the snippets of a page share their variables
    for code in SNIPPET.findall(page.read_text(encoding="utf-8")):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page.name, "exec"), scope)
        assert printed.getvalue().splitlines() == EXPECTED.findall(code)


@pytest.mark.parametrize("page", LINKING, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    if name.startswith("memograft.lm_eval"):
        pytest.importorskip("lm_eval", reason="needs the extra lm-eval, which is not in dev")
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module)
    assert failed == 0


def exported(package: Path) -> list[str]:
    """`__all__` of a package's `__init__.py`, read without importing it."""
    assignments = (n for n in ast.parse(package.read_text(encoding="utf-8")).body if isinstance(n, ast.Assign))
    (names,) = (ast.literal_eval(n.value) for n in assignments if ast.unparse(n.targets[0]) == "__all__")
    return sorted(names)


def on_page(page: str, package: str) -> list[str]:
    """The names of a package that a page of the reference describes."""
    return sorted(re.findall(rf"^::: {re.escape(package)}\.(\w+)$", (REFERENCE / page).read_text("utf-8"), re.M))


def test_the_reference_has_every_public_name() -> None:
    errors = [f"errors.{name}" for name in memograft.errors.__all__]
    listed = re.findall(r"^::: memograft\.([\w.]+)$", (REFERENCE / "memograft.md").read_text("utf-8"), re.M)
    assert sorted(listed) == sorted([*memograft.__all__, *errors])


@pytest.mark.parametrize(
    ("page", "package", "source"),
    [
        ("chat.md", "memograft.chat", "src/memograft/chat"),
        ("langchain.md", "langchain_memograft", "integrations/langchain/langchain_memograft"),
        ("llama-index.md", "llama_index.llms.memograft", "integrations/llama-index/llama_index/llms/memograft"),
    ],
)
def test_the_reference_has_every_public_name_of_the_other_packages(page: str, package: str, source: str) -> None:
    assert on_page(page, package) == exported(ROOT / source / "__init__.py")


def test_every_page_is_in_the_navigation() -> None:
    """Other mistakes are found by mkdocs (`make docs`), which the tests do not need."""
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    pages = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    assert pages <= set(re.findall(r": ([\w/-]+\.md)$", nav, re.M))


def test_every_entry_of_the_log_has_the_same_form() -> None:
    days = re.split(r"^## (\S+)$", (ROOT / "benchmarks" / "LOG.md").read_text(encoding="utf-8"), flags=re.M)
    dates = days[1::2]
    assert dates == sorted(dates, reverse=True)
    facts = (
        r"(; measured at [0-9a-f]{7}|; replayed on records of [0-9a-f]{7}|; the kept variant is that of [0-9a-f]{7})?"
    )
    line = re.compile(rf"(\d{{4}}-\d\d-\d\d){facts}(; command `[^`]+`)?(; logged in [0-9a-f]{{7}})?\.")
    for day, entries in zip(dates, days[2::2], strict=True):
        for entry in re.split(r"^### ", entries, flags=re.M)[1:]:
            title, about, text = entry.split("\n\n", 2)
            found = line.fullmatch(about)
            assert found, f"{title}: {about}"
            assert found[1] == day, title
            assert text.strip(), title


def test_contributing_explains_each_addition_in_under_ten_lines() -> None:
    parts = re.split(r"^## ", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.M)
    adding = {
        part.splitlines()[0]: part.split("\n", 1)[1].strip().splitlines()
        for part in parts
        if part.startswith("Adding ")
    }
    subjects = ["a model family", "a memory", "a processor", "a behaviour to both integrations", "a data set"]
    assert list(adding) == [f"Adding {subject}" for subject in subjects]
    assert {title for title, lines in adding.items() if len([line for line in lines if line]) >= 10} == set()
