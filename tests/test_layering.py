"""The rules of the architecture that can be checked automatically."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import memograft

ROOT = Path(__file__).parents[1]
SOURCE = sorted((ROOT / "src").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
CORE = [f for f in SOURCE if not {"cli", "__main__"} & {*f.relative_to(ROOT).with_suffix("").parts}]
INTEGRATIONS = ("langchain", "llama_index", "typer", "rich")


def imports(file: Path, *, top: bool = False) -> set[str]:
    """Modules that a file imports; with `top` only those imported at import time (without type checking)."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes: list[ast.AST] = list(tree.body) if top else list(ast.walk(tree))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return found | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


def lines(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def relative(files: list[Path]) -> list[str]:
    return [str(file.relative_to(ROOT)) for file in files]


MAP = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROOMS = re.findall(r"^(\w+) ", MAP.partition("```text order\n")[2].partition("```")[0], re.MULTILINE)
PACKAGE = ROOT / "src" / "memograft"
INTEGRATED = [f for f in sorted((ROOT / "integrations").rglob("*.py")) if not {"tests", ".venv"} & set(f.parts)]

# (file, room): exceptional imports. Remove one when its room is next rewritten.
AGAINST_THE_ORDER: tuple[tuple[str, str], ...] = ()
# (file, attribute): private names of other packages' classes that have no public equivalent.
PRIVATE_ELSEWHERE = (
    ("src/memograft/model/loading.py", "_name_or_path"),  # transformers: the name of a configuration's model
    (
        "src/memograft/model/key_bias.py",
        "_attn_implementation",
    ),  # transformers: which one `set_attn_implementation` set
    ("integrations/langchain/langchain_memograft/llms.py", "_opened"),  # of a copy of itself
    ("integrations/langchain/langchain_memograft/llms.py", "_aopened"),
    ("integrations/llama-index/llama_index/llms/memograft/synthesizer.py", "_extend_messages"),  # LlamaIndex's
    ("integrations/llama-index/llama_index/llms/memograft/synthesizer.py", "_beside"),  # of the LLM in the same package
)
NAMED_TUPLE = ("_asdict", "_replace", "_fields", "_make")  # public in spite of the underscore


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def exported(module: str) -> set[str]:
    """The `__all__` of one of our modules."""
    file = ROOT / "src" / Path(*module.split("."))
    tree = parsed(file / "__init__.py" if file.is_dir() else file.with_suffix(".py"))
    found = (n.value for n in tree.body if isinstance(n, ast.Assign) and "__all__" in map(ast.unparse, n.targets))
    return set(ast.literal_eval(next(found, ast.List([]))))


def rooms_imported(tree: ast.Module) -> set[str]:
    """The rooms that a module imports from; names of `memograft` count for the room that defines them."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "memograft":
            homes = (memograft._HOMES.get(a.name, f"memograft.{a.name}") for a in node.names if a.name != "__version__")
            found |= {home.split(".")[1] for home in homes}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("memograft."):
            found.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "memograft" for alias in node.names):
            found |= {
                alias.name.partition(".")[2].split(".")[0] or "shared" for alias in node.names
            }  # `shared` imports all
    return found


def private_names(tree: ast.Module) -> set[str]:
    """Private attributes that a module uses of other classes than its own."""
    own: set[str] = set()
    asked: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                names = [part.name] if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) else []
                targets = part.targets if isinstance(part, ast.Assign) else []
                targets += [part.target] if isinstance(part, ast.AnnAssign) else []
                own |= {*names, *map(ast.unparse, targets)}
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            of = ast.unparse(node.value)
            if of in ("self", "cls") and isinstance(node.ctx, ast.Store):
                own.add(node.attr)
            elif of not in ("self", "cls", "super()") and node.attr not in NAMED_TUPLE:
                asked.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "memograft":
            asked |= {alias.name for alias in node.names if alias.name.startswith("_") and alias.name != "__version__"}
    return asked - own


def test_every_room_has_its_place_in_the_order() -> None:
    there = {room(f) for f in SOURCE} - {"__init__"}
    assert sorted(ROOMS) == sorted(there)


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_only_what_stands_above_it(name: str) -> None:
    allowed = {*ROOMS[: ROOMS.index(name) + 1]}
    guilty = {
        (str(file.relative_to(ROOT)), other)
        for file in SOURCE
        if room(file) == name
        for other in rooms_imported(parsed(file)) - allowed
    }
    assert guilty == {(file, other) for file, other in AGAINST_THE_ORDER if room(ROOT / file) == name}


def test_nobody_asks_for_private_names_of_other_modules() -> None:
    files = [*SOURCE, *INTEGRATED]
    guilty = {(str(file.relative_to(ROOT)), name) for file in files for name in private_names(parsed(file))}
    assert guilty == set(PRIVATE_ELSEWHERE)


def test_what_asks_for_a_private_name_is_seen() -> None:
    source = "class A:\n    def f(self, engine):\n        self._x = 1\n        return other._x, engine._prompts\n"
    assert private_names(ast.parse(source)) == {"_prompts"}
    assert private_names(ast.parse("from memograft.engine import _secret")) == {"_secret"}
    assert rooms_imported(ast.parse("def f():\n    from memograft import Engine\n    import memograft")) == {
        "engine",
        "shared",
    }


def test_integrations_import_what_is_exported() -> None:
    public = exported("memograft")
    guilty = {
        (node.module, alias.name)
        for file in INTEGRATED
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "memograft"
        for alias in node.names
        if alias.name not in public | exported(node.module or "")
        and not (PACKAGE / f"{alias.name}.py").exists()  # a module or a room
        and not (PACKAGE / alias.name / "__init__.py").exists()
    }
    assert not guilty


def test_any_is_rare() -> None:
    """`Any` disables type checking; it once was in 383 lines."""
    lines = {
        (file, node.lineno)
        for file in SOURCE
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.Name) and node.id == "Any"
    }
    assert len(lines) < 120


def test_the_core_knows_no_framework_and_no_command_line() -> None:
    guilty = [
        f for f in CORE if any(m.split(".")[0] in INTEGRATIONS or ".cli." in f"{m}." for m in imports(f, top=True))
    ]
    assert not relative(guilty)


def test_what_describes_a_request_imports_no_torch() -> None:
    for name in (
        "__init__",
        "shared",
        "errors",
        "documents",
        "request",
        "cli/__init__",
        "serving/queue",
        "serving/stream",
    ):
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
    """Things that make a test depend on chance, on the clock or on the processor."""
    files = [f for f in [*TESTS, *(ROOT / "integrations").rglob("tests/**/*.py")] if f.stem not in PATIENT]
    assert not relative([f for f in files if re.search(pattern, f.read_text(encoding="utf-8"))]), instead


def test_the_oldest_versions_that_are_tested_are_those_that_are_allowed() -> None:
    script = ROOT / "recipes" / "release" / "oldest.py"
    assert "recipes/release/oldest.py > $(1)/oldest.txt" in (ROOT / "Makefile").read_text(encoding="utf-8")
    printed = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
    pins = dict(line.split("==") for line in printed.splitlines())
    allowed = [ROOT / "pyproject.toml", *(ROOT / "integrations").glob("*/pyproject.toml")]
    text = "".join(file.read_text(encoding="utf-8") for file in allowed)
    bounded = set(re.findall(r'^ *(?:[\w-]+ = \[)?"([\w-]+)(?:\[[\w,-]+\])?>=', text, re.MULTILINE))
    assert set(pins) == bounded - {"hatchling", "memograft", "torch"}
    for name, version in pins.items():
        assert re.search(rf'"{name}(\[[\w,-]+\])?>={re.escape(version)}[",;]', text), name


def test_every_file_says_what_it_is_for() -> None:
    files = [f for f in SOURCE + TESTS if f.read_text(encoding="utf-8").strip()]
    assert not relative([f for f in files if not ast.get_docstring(ast.parse(f.read_text(encoding="utf-8")))])
