"""Write training samples for tiny's gist: pages about invented things, with questions, as JSON lines.

    python recipes/gist/tiny_samples.py runs/gist

    short.jsonl      one page with one or two facts about one thing
    pages.jsonl      one to three pages about one to four things
    single.jsonl     those of pages.jsonl with one page
    held_out.jsonl   for scores during training; its names do not occur in the others

The names of the held-out questions (`memograft eval world`) do not occur in the others either.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tiny"))

from data import Example, example, invent, page, question_and_answer
from language import SUBJECT_RELATIONS
from sets import items

# Most pages are about invented things. Pages about known things teach when to follow the page and when it is no help.
MIX = {
    "fresh_short": 0.1,
    "fresh": 0.25,
    "fresh_alike": 0.3,
    "fiction": 0.1,
    "extends": 0.05,
    "known": 0.05,
    "elsewhere": 0.15,
}
REAL = 0.1  # share of values that exist


def short(rng: random.Random) -> Example:
    """A page with one or two facts about one invented thing, and a question about each."""
    entity = invent(rng.choice(list(SUBJECT_RELATIONS)), rng, rng.randint(1, 2), REAL)
    asked = [question_and_answer(name, entity.subject, value, rng) for name, value in entity.facts.items()]
    return Example([turn for pair in asked for turn in pair], [page([entity], rng)])


def lines(made: Example) -> Iterator[dict[str, Any]]:
    """A sample for each question."""
    for (_, question), (_, answer) in zip(made.turns[::2], made.turns[1::2], strict=True):
        yield {"documents": made.documents, "question": question, "answer": answer}


def write(file: Path, samples: Iterator[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as out:
        for sample in samples:
            out.write(json.dumps(sample, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--short", type=int, default=40000, help="pages in short.jsonl")
    parser.add_argument("--pages", type=int, default=130000, help="examples in pages.jsonl, of one to three pages each")
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--seed", default="gist")
    args = parser.parse_args()
    rngs = (random.Random(f"{args.seed}-short-{n}") for n in range(args.short))
    write(args.out / "short.jsonl", (line for rng in rngs for line in lines(short(rng))))
    rngs = (random.Random(f"{args.seed}-{n}") for n in range(args.pages))
    made = [line for rng in rngs for line in lines(example(rng, MIX))]
    write(args.out / "pages.jsonl", iter(made))
    write(args.out / "single.jsonl", (line for line in made if len(line["documents"]) == 1))
    held_out = items("unseen", args.held_out, f"{args.seed}-tune")
    asked = ({"documents": list(i.documents), "question": i.question, "answer": i.answer} for i in held_out)
    write(args.out / "held_out.jsonl", asked)


if __name__ == "__main__":
    main()
