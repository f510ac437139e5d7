"""Attacks use random numbers from a seed and count what they tried; `make soak` repeats them with other seeds.

MEMOGRAFT_SEED: the seed, default 0. MEMOGRAFT_TALLY: a file to which a JSON line is appended for each attack.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

SEED = os.environ.get("MEMOGRAFT_SEED", "0")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """A generator for each attack and seed."""
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def effort() -> int:
    """Factor for the number of attempts: 4 in `make soak`."""
    return 4 if "MEMOGRAFT_SEED" in os.environ else 1


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Counter[str]]:
    """Counts of what was tried, by name."""
    tried: Counter[str] = Counter()
    yield tried
    if path := os.environ.get("MEMOGRAFT_TALLY"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"attack": request.node.name, "seed": SEED, **tried}) + "\n")
