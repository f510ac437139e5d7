"""What a datastore of twenty examples teaches a frozen model, new facts and a new style, and what it makes worse.

    python benchmarks/rtd_learns.py        # 10 minutes of a core

Facts: questions about things that do not exist, with one sentence as the answer. They are asked in the wording of the
examples and in other wordings. An answer is right if it contains the value. Style: questions about real capitals, with
tiny's own answer and a second line. Other capitals are asked. An answer is right if it equals tiny's own answer with
that line, character by character.

Both are measured with and without the datastore, and so are 150 other questions that tiny knows, without documents, and
answers from documents that it has not seen: right answers, and the share of tokens that stay the same. Controls: the
gate off, and "misplaced", the same entries with shuffled tokens.

Facts and questions are from the test split; settings were chosen on the other split. The seed determines the facts and
capitals of the examples. Intervals are 95% bootstraps over all questions of all seeds. Prints a table and, last, one
JSON line.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from choice.sets import RELATIONS
from tqdm import tqdm

from memograft import Datastore, Engine, Request, Rtd, Sampling
from memograft.evaluation.items import Item, world
from memograft.evaluation.metrics import interval
from memograft.evaluation.provenance import provenance
from memograft.evaluation.scores import says

LINE = "\nSource: the atlas."
SENTENCES = {
    "capital": "The capital of S is V.",
    "language": "The main language of S is V.",
    "author": "The author of S is V.",
    "painter": "The painter of S is V.",
    "inventor": "The inventor of S is V.",
    "city": "The home of S is V.",
}
FACTS = {"weight": 0.9}
STYLE = {"weight": 0.6, "heads": 8, "k": 16, "gate": None}


@dataclass(frozen=True)
class Asked:
    """A question and its right answer."""

    request: Request
    right: Callable[[str], bool]


def ask(question: str, right: Callable[[str], bool], documents: Sequence[Any] = ()) -> Asked:
    return Asked(Request(question, documents=documents, sampling=Sampling(40)), right)


def holds(value: str) -> Callable[[str], bool]:
    return lambda text: says(text, value)


def invented(items: Sequence[Item]) -> list[tuple[str, str, str]]:
    """(relation, subject, value) of the facts about things that do not exist."""
    found = {}
    for item in items:
        for relation in SENTENCES:
            for form in RELATIONS[relation][2].split("|"):
                if item.set == "unseen" and (m := re.fullmatch(re.escape(form).replace("S", "(.+)", 1), item.question)):
                    found[m[1]] = relation, m[1], item.answers[0]
    return list(found.values())


def facts(items: Sequence[Item], seed: int) -> tuple[list[tuple[str, str]], dict[str, list[Asked]]]:
    """Examples of twenty facts, and the questions about them."""
    drawn = random.Random(seed)
    known = drawn.sample(invented(items), 20)
    examples, taught, other = [], [], []
    for relation, subject, value in known:
        first, second = (form.replace("S", subject) for form in drawn.sample(RELATIONS[relation][2].split("|"), 2))
        examples.append((first, SENTENCES[relation].replace("S", subject).replace("V", value)))
        taught.append(ask(first, holds(value)))
        other.append(ask(second, holds(value)))
    return examples, {"in the words learned": taught, "in other words": other}


def style(engine: Engine, items: Sequence[Item], seed: int) -> tuple[list[tuple[str, str]], dict[str, list[Asked]]]:
    """Examples of twenty capitals in the new style, and the questions about the others."""
    questions = sorted({i.question for i in items if i.belief and "capital" in i.question})
    plain = {a.text: q for q, a in zip(questions, engine.answer_batch(plainly(questions)), strict=True)}
    capitals = [(q, text) for text, q in plain.items()]  # one question for each
    random.Random(seed).shuffle(capitals)
    rest = [ask(q, lambda answer, own=text: answer == own + LINE) for q, text in capitals[20:]]
    return [(q, text + LINE) for q, text in capitals[:20]], {"other capitals": rest}


def plainly(questions: Sequence[str]) -> list[Request]:
    return [Request(q, sampling=Sampling(40)) for q in questions]


def others(items: Sequence[Item], about: str) -> dict[str, list[Asked]]:
    """Questions that the examples are not about: known ones, and ones with pages that the model has not seen."""
    known = {i.question: i.belief for i in items if i.belief and about not in i.question}
    some = random.Random(0).sample(sorted(known.items()), 150)
    pages = [i for i in items if i.set == "unseen" and about not in i.question][:100]
    return {
        "known, unrelated": [ask(q, holds(belief)) for q, belief in some],
        "pages, unrelated": [ask(i.question, holds(i.answers[0]), i.documents) for i in pages],
    }


@contextmanager
def misplaced(engine: Engine, store: Datastore, seed: int) -> Iterator[Datastore]:
    """The same entries with shuffled tokens."""
    entries = store._files.entries
    values = np.random.default_rng(seed).permutation(entries.values)
    with Datastore.build(engine, [], progress=False) as made:
        made.extend(entries._replace(keys=entries.keys.copy(), values=values), [store.source(n) for n in range(20)])
        yield made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--split", choices=["test", "tune"], default="test")
    args = parser.parse_args()
    about, items = provenance(torch.device("cpu")), world(args.split)
    counts: dict[tuple[str, str, str], list[list[float]]] = {}
    with Engine.from_pretrained(args.model) as engine:
        for seed in tqdm(range(args.seeds), desc="seeds"):
            for kind, settings, topic in (("facts", FACTS, "no such word"), ("style", STYLE, "capital")):
                examples, asked = facts(items, seed) if kind == "facts" else style(engine, items, seed)
                asked |= others(items, topic)
                with (
                    Datastore.build(engine, examples, progress=False) as store,
                    misplaced(engine, store, seed) as worthless,
                ):
                    gate = None if settings.get("gate", "auto") else "auto"
                    ways = {
                        "before": None,
                        "after": Rtd(store, **settings),  # type: ignore[arg-type]
                        f"after, gate {gate}": Rtd(store, **{**settings, "gate": gate}),  # type: ignore[arg-type]
                        "misplaced": Rtd(worthless, **settings),  # type: ignore[arg-type]
                    }
                    for way, rtd in ways.items():
                        for name, questions in asked.items():
                            count(engine, counts.setdefault((kind, way, name), []), questions, rtd)
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for (kind, way, name), found in counts.items():
        right, stayed = np.array(found).T
        cell = {"n": len(right), "right": round(float(right.mean()), 4), "interval": interval(right)}
        results.setdefault(f"{kind}, {way}", {})[name] = cell | {"tokens_that_stay": round(float(stayed.mean()), 4)}
    show(results)
    settings = {"facts": FACTS, "style": STYLE, "examples": 20, "line": LINE}
    record = {"benchmark": "rtd learns", "model": args.model, "split": args.split, "seeds": args.seeds}
    print(json.dumps({**record, "settings": settings, "results": results, **about}))


def count(engine: Engine, found: list[list[float]], asked: Sequence[Asked], rtd: Rtd | None) -> None:
    """For each question: whether the answer is right, and the share of the plain answer's tokens that stay the same."""
    requests = [a.request for a in asked]
    plain = engine.answer_batch(requests)
    now = plain if rtd is None else engine.answer_batch([replace(r, processors=[rtd]) for r in requests])
    for each, a, b in zip(asked, plain, now, strict=True):
        same = sum(x == y for x, y in zip(a.token_ids, b.token_ids, strict=False))
        found.append([float(each.right(b.text)), same / len(a.token_ids)])


def show(results: dict[str, dict[str, dict[str, Any]]]) -> None:
    names = list(dict.fromkeys(name for cells in results.values() for name in cells))
    print("| right [95%], tokens that stay | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for way, cells in results.items():
        shown = []
        for name in names:
            if (c := cells.get(name)) is None:
                shown.append("-")
            else:
                low, high = c["interval"]
                shown.append(f"{c['right']:.3f} [{low:.3f}, {high:.3f}], {c['tokens_that_stay']:.3f}")
        print(f"| {way} | " + " | ".join(shown) + " |")


if __name__ == "__main__":
    main()
