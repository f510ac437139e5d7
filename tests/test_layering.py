"""The rules of the architecture that a machine can check."""

from __future__ import annotations

import ast
import re
import statistics
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = sorted((ROOT / "src").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
CORE = [f for f in SOURCE if "cli" not in f.relative_to(ROOT).with_suffix("").parts]
INTEGRATIONS = ("langchain", "llama_index", "typer", "rich")


def imports(file: Path, *, top: bool = False) -> set[str]:
    """Modules a file imports; with `top` only those imported as soon as it is (type checking aside)."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes: list[ast.AST] = list(tree.body) if top else list(ast.walk(tree))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return found | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


def lines(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def relative(files: list[Path]) -> list[str]:
    return [str(file.relative_to(ROOT)) for file in files]


def test_nobody_in_the_core_imports_the_engine() -> None:
    """`__init__` names it, for type checkers and by its path."""
    guilty = [f for f in CORE if "memograft.engine" in imports(f) and f.name != "__init__.py"]
    assert not relative(guilty)


def test_the_core_knows_no_framework_and_no_command_line() -> None:
    guilty = [f for f in CORE if any(m.split(".")[0] in INTEGRATIONS or ".cli" in m for m in imports(f, top=True))]
    assert not relative(guilty)


def test_what_describes_a_request_imports_no_torch() -> None:
    for name in ("__init__", "errors", "documents", "request", "cli/__init__", "serving/queue", "serving/stream"):
        heavy = {"torch", "transformers", "peft", "faiss", "sklearn", "numpy"}
        file = ROOT / "src" / "memograft" / f"{name}.py"
        assert not {m.split(".")[0] for m in imports(file, top=True)} & heavy, name


@pytest.mark.parametrize("file", SOURCE + TESTS, ids=lambda f: str(f.relative_to(ROOT)))
def test_no_file_is_longer_than_400_lines(file: Path) -> None:
    assert lines(file) <= 400, f"{file.relative_to(ROOT)} has {lines(file)} lines; split it"


def test_most_files_are_short() -> None:
    assert statistics.median(lines(f) for f in SOURCE) < 200


def test_no_drawer_for_everything() -> None:
    assert not relative([f for f in SOURCE + TESTS if f.stem in ("utils", "util", "helpers", "common", "misc")])


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"\bimport pickle\b|\bpickle\.|torch\.load\(|(?<![.\w])eval\(|\bexec\(|allow_pickle", "runs what a file says"),
        (r"except:|except Exception:\s*pass", "hides errors"),
        (r"\bprint\(", "a library does not print"),
        (r"from \S+ import \*", "star imports"),
        (
            r"model_type\s*(==|in)|['\"](llama|gemma|qwen|mistral|gpt2?|phi|opt|falcon)['\"]",
            "facts read off a model's name",
        ),
        (r"TODO|FIXME|XXX", "unfinished"),
    ],
)
def test_not_in_the_source(pattern: str, why: str) -> None:
    among = CORE if "print" in pattern else SOURCE
    files = [f for f in among if re.search(pattern, f.read_text(encoding="utf-8"), re.IGNORECASE)]
    assert not relative(files), why


PATIENT = ("gates", "test_layering", "test_stream", "test_datastore_kills", "test_vector_store_kills")  # reviewed


@pytest.mark.parametrize(
    ("pattern", "instead"),
    [
        (r"\btime\.sleep\(|threading\.Timer\(|asyncio\.sleep\(0\.0[1-9]", "wait for what is to happen: gates.until"),
        (
            r"(perf_counter|monotonic|\btime)\(\) - \w+ <",
            "the machine may be busy: count what is done, or time nothing",
        ),
        (r"set_num_threads\((?!int\(os)", "OMP_NUM_THREADS says how many"),
    ],
)
def test_not_in_the_tests(pattern: str, instead: str) -> None:
    """What makes a test depend on luck, on the clock or on the processor."""
    files = [f for f in [*TESTS, *(ROOT / "integrations").rglob("tests/**/*.py")] if f.stem not in PATIENT]
    assert not relative([f for f in files if re.search(pattern, f.read_text(encoding="utf-8"))]), instead


def test_the_oldest_versions_that_are_tested_are_those_that_are_allowed() -> None:
    oldest = re.search(r"^OLDEST := (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert oldest is not None
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    for pin in oldest[1].split():
        name, version = pin.split("==")
        assert any(d.startswith(f"{name}>={version.removesuffix('.0')},") for d in wanted), pin


def test_every_file_says_what_it_is_for() -> None:
    files = [f for f in SOURCE + TESTS if f.read_text(encoding="utf-8").strip()]
    assert not relative([f for f in files if not ast.get_docstring(ast.parse(f.read_text(encoding="utf-8")))])
