"""Prints pip constraints with the oldest versions that the three pyproject.toml files allow: `make test-oldest`."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = ("pyproject.toml", "integrations/langchain/pyproject.toml", "integrations/llama-index/pyproject.toml")
BOUND = re.compile(r"([\w.-]+)(?:\[[\w,-]+\])?>=([\d.]+)")
# The packages of this repository, and torch, whose version the Makefile sets.
OMITTED = ("memograft", "langchain-memograft", "llama-index-llms-memograft", "torch")


def bounds() -> dict[str, str]:
    """The lower bound of each dependency, extras included; of several for one package, the highest."""
    found: dict[str, str] = {}
    for name in PROJECTS:
        project = tomllib.loads((ROOT / name).read_text(encoding="utf-8"))["project"]
        for requirement in chain(project["dependencies"], *project["optional-dependencies"].values()):
            if (match := BOUND.match(requirement)) and match[1] not in OMITTED:
                found[match[1]] = max(found.get(match[1], "0"), match[2], key=numbers)
    return found


def numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


if __name__ == "__main__":
    for package, version in sorted(bounds().items()):
        print(f"{package}=={version}")
