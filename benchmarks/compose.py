"""What composing memories of single pages costs in quality and saves in time, compared with memorizing pages together.

    python benchmarks/compose.py --data PATH/nqswap-dev.jsonl.xz --folder runs/compose

The questions are from NQ-SWAP, each with its page, in which the answer is swapped, among four pages of other questions
("one of five" of `memograft eval`). They are answered plainly, with pages memorized together, and with composed
memories; each for the pages that are about the question and for all five. Prompts longer than `--words` are skipped.
Answers are kept in the folder, and an interrupted run continues. With `--only`, a process runs some of the methods;
another process then collects the answers of all.

The second part measures the time, with a bank, of a request for three of five pages that were memorized before in other
combinations: CPU time with one new token, divided by that of a plain answer. The methods run in turn, each time in
another order. Ratios are medians over the questions. "first" are new pages, "again" the same three once more. Prints
tables and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from memograft import Bank, Document, Engine, FastMem, Memory, Sampling
from memograft.evaluation.items import Item
from memograft.evaluation.methods import METHODS, Method
from memograft.evaluation.metrics import difference, summary, table
from memograft.evaluation.provenance import provenance
from memograft.evaluation.readers import read
from memograft.evaluation.runner import Records, run

ALL = FastMem(relevance=None, conflicts=None)


def _memorized(memory: FastMem) -> Method:
    return Method(memory=lambda: memory)


WAYS = {
    "no document": METHODS["no document"],
    "plain": METHODS["plain"],
    "together": _memorized(FastMem()),
    "composed": _memorized(FastMem(compose=True)),
    "together, all five": _memorized(ALL),
    "composed, all five": _memorized(replace(ALL, compose=True)),
}
PAIRS = {"composed": "together", "composed, all five": "together, all five"}
TIMED: dict[str, Memory | None] = {"plain": None, "together": ALL, "composed": replace(ALL, compose=True)}


def questions(path: str, split: str, words: int, n: int) -> list[Item]:
    """The first `n` questions whose pages have at most this number of words."""
    items = read(path, contexts=["one of five"], split=split).items
    return [item for item in items if sum(len(d.text.split()) for d in item.documents) <= words][:n]


def differences(records: Records) -> dict[str, dict[str, Any]]:
    """Composed minus together, paired, for right and for clean answers (right, ended, without repetition)."""
    return {
        f"{ours} - {theirs}": {
            measure: difference(records[ours]["one of five"], records[theirs]["one of five"], measure)
            for measure in ("right", "clean")
        }
        for ours, theirs in PAIRS.items()
    }


def times(engine: Engine, items: Sequence[Item]) -> dict[str, dict[str, float]]:
    """For each method, CPU seconds divided by those of plain; and composed divided by together."""
    ratios: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for item in tqdm(items, desc="times"):
        seconds = {}
        for name in random.sample(list(TIMED), len(TIMED)):
            with Engine(engine.model, engine.tokenizer, bank=Bank(prefix_bytes=0)) as own:
                seconds[name] = _seconds(own, item, TIMED[name])
        for when in ("first", "second", "again"):
            taken = {name: by_time[when] for name, by_time in seconds.items()}
            for name in ("together", "composed"):
                ratios[when][name].append(taken[name] / taken["plain"])
            ratios[when]["composed / together"].append(taken["composed"] / taken["together"])
    return {w: {name: round(statistics.median(r), 3) for name, r in by.items()} for w, by in ratios.items()}


def _seconds(engine: Engine, item: Item, memory: Memory | None) -> Mapping[str, float]:
    a, b, c, d, e = item.documents

    def taken(*pages: Document) -> float:
        began = time.process_time()
        engine.answer(item.question, pages, memory=memory, sampling=Sampling(1))
        return time.process_time() - began

    first = taken(a, b, c)
    taken(c, d, e)
    return {"first": first, "second": taken(a, c, e), "again": taken(a, c, e)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="an id, a folder, or a name that Engine takes")
    parser.add_argument("--data", required=True, help="NQ-SWAP: .json or .jsonl, packed or not")
    parser.add_argument("--folder", default="runs/compose", help="keeps the answers")
    parser.add_argument("--split", choices=("test", "tune"), default="test")
    parser.add_argument("--n", type=int, default=100, help="questions")
    parser.add_argument("--words", type=int, default=500, help="of five pages together, at most")
    parser.add_argument("--timed", type=int, default=12, help="questions whose time is taken")
    parser.add_argument("--only", nargs="+", choices=list(WAYS), help="ask in these ways and end")
    args = parser.parse_args()
    random.seed(0)
    items = questions(args.data, args.split, args.words, args.n)
    with Engine.from_pretrained(args.model) as engine:
        ways = {name: WAYS[name] for name in args.only or WAYS}
        records = run(engine, ways, items, args.folder, ignore_case=True)
        if args.only:
            return
        results, compared, taken = summary(records), differences(records), times(engine, items[: args.timed])
        about = {
            "fingerprint": engine.fingerprint,
            "dtype": str(engine.model.dtype).removeprefix("torch."),
            "default": asdict(engine.defaults),
            **provenance(engine.model.device),
        }
    print(table(results))
    print(table(results, clean=True))
    for name, by_measure in compared.items():
        print(name, *(f"{m} {d['difference']:+.3f} {d['interval']}" for m, d in by_measure.items()))
    for when, by_name in taken.items():
        print(when, *(f"{name} {ratio:.2f}" for name, ratio in by_name.items()))
    rows = [row for by_set in records.values() for row in by_set["one of five"]]
    record = {
        "benchmark": "compose",
        "model": Path(args.model).name,
        "data": Path(args.data).name,
        "split": args.split,
        "n": len(items),
        "words": args.words,
        "results": results,
        "differences": compared,
        "times": taken,
        "timed": min(args.timed, len(items)),
        "settings": {name: way.settings() for name, way in WAYS.items()},
        "commits_of_the_answers": sorted({row["commit"] for row in rows}),
        **about,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
