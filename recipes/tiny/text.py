"""Real text for the gpu preset: beginnings of encyclopedia articles, and questions about paragraphs.

The files are not part of this repository; `--text` names them. Two formats are read: JSON lines of `title` and `text`,
and SQuAD's official JSON. Either may be compressed with xz.
"""

from __future__ import annotations

import json
import lzma
import random
from pathlib import Path
from typing import Any

from data import Example

LEAD_CHARACTERS = 900  # about the length of one row


def load(paths: list[Path]) -> list[Any]:
    """Return articles as (title, text), and SQuAD paragraphs as (context, [(question, answer), ...])."""
    found: list[Any] = []
    for path in paths:
        opener = lzma.open if path.suffix == ".xz" else open
        with opener(path, "rt", encoding="utf-8") as f:
            if ".jsonl" in path.name:
                found += [(r["title"], r["text"]) for r in map(json.loads, f)]
                continue
            for article in json.load(f)["data"]:
                for paragraph in article["paragraphs"]:
                    pairs = [(q["question"], q["answers"][0]["text"]) for q in paragraph["qas"] if q["answers"]]
                    found.append((paragraph["context"], pairs))
    return found


def example(found: list[Any], rng: random.Random) -> Example:
    """One article, or one paragraph with up to three questions."""
    head, body = rng.choice(found)
    if isinstance(body, str):
        return Example([("user", f"Tell me about {head}."), ("assistant", body[:LEAD_CHARACTERS])])
    turns: list[tuple[str, str]] = []
    for question, answer in rng.sample(body, min(3, len(body))):
        turns += [("user", question), ("assistant", answer)]
    return Example(turns, [head])
