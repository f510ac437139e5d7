"""Uses an installed Memograft as a newcomer would: `python smoke.py REPOSITORY core|integrations`.

Runs with the Python of a fresh environment, and needs nothing besides the wheels: every name that the documentation
imports or describes, the help of every command, and one answer.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
DESCRIBED = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)
OURS = {
    "core": ("memograft",),
    "integrations": ("memograft", "langchain_memograft", "llama_index.llms.memograft"),
}
# The documented names and the commands that an extra provides; without it, using them must say so.
NEED_EXTRA = {
    "memograft.server": "memograft[serve]",
    "memograft.cluster.replicas": "memograft[serve]",  # and ray
    "langchain_memograft.MemograftMiddleware": "agents",
    "lm-eval": "memograft[lm-eval]",  # its help is that of the harness
}


def documented(repository: Path, packages: tuple[str, ...]) -> list[str]:
    """The names of these packages that README and docs import or describe, such as "memograft.chat.plan"."""
    found: set[str] = set()
    for page in [*repository.glob("*.md"), *repository.glob("docs/**/*.md"), *repository.glob("integrations/*/*.md")]:
        text = page.read_text(encoding="utf-8")
        found.update(DESCRIBED.findall(text))
        for node in (node for code in FENCE.findall(text) for node in ast.walk(ast.parse(code))):
            if isinstance(node, ast.ImportFrom):
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return sorted(name for name in found if name.startswith(packages))


def import_names(names: list[str]) -> None:
    """Import each name, or see that what refuses it names the missing extra."""
    for name in names:
        extra = next((extra for owner, extra in NEED_EXTRA.items() if name.startswith(owner)), None)
        try:
            module, _, attribute = name.rpartition(".")
            getattr(importlib.import_module(module), attribute)
        except ImportError as error:
            if extra is None or extra not in str(error):
                raise
    print(f"{len(names)} documented names")


def commands(group: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Each command's words, groups included."""
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


def show_help() -> None:
    """Run `--help` of the program and of each of its commands."""
    from typer.main import get_command

    from memograft.cli.app import app

    program = Path(sys.executable).with_name("memograft")
    found = list(commands(get_command(app)))
    for words in found:
        done = subprocess.run([program, *words, "--help"], capture_output=True, text=True)
        extra = NEED_EXTRA.get(" ".join(words))
        if done.returncode and (extra is None or extra not in done.stderr):
            raise SystemExit(f"memograft {' '.join(words)} --help failed: {done.stderr}")
    print(f"{len(found)} commands show their help")


def answer() -> None:
    """Ask the bundled model something, and run the demo."""
    from memograft import Engine, FastMem

    engine = Engine.from_pretrained("tiny")
    said = engine.answer(
        "What is the capital of Velmora?", documents=["The capital of Velmora is Torstad."], memory=FastMem()
    )
    engine.close()
    assert "Torstad" in said.text, f"the answer lacks Torstad: {said.text!r}"
    assert said.memory is not None
    assert said.memory.loss_after < said.memory.loss_before
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "demo.html")
        subprocess.run([Path(sys.executable).with_name("memograft"), "demo", "--html", page], check=True)
        assert page.stat().st_size > 0
    print(f"answered {said.text!r}")


def ask_integrations() -> None:
    """One answer of each integration."""
    from langchain_memograft import ChatMemograft
    from llama_index.llms.memograft import Memograft

    question = "What is the capital of France?"
    for said in (ChatMemograft(model="tiny").invoke(question).text, Memograft(model="tiny").complete(question).text):
        assert "Paris" in said, f"the answer lacks Paris: {said!r}"
    print("both integrations answered")


if __name__ == "__main__":
    part = sys.argv[2]
    import_names(documented(Path(sys.argv[1]), OURS[part]))
    if part == "core":
        show_help()
        answer()
    else:
        ask_integrations()
