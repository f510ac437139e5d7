"""What MAC answers from a bank, beside retrieval and both: pages about invented things, tiny.

    python benchmarks/mac.py --mac runs/gist/mac --out runs/mac

The names on the pages occur in no training page (`recipes/tiny/sets.py`, set "unseen"), so an answer can come from a
page only. "MAC" has a bank of all pages and none in the prompt; retrieval puts the best pages into the prompt.
Controls: a bank of other pages, and one in which each number of a modulation was exchanged with that of another page.

"bounded" cuts the bank by merging the nearest, averaging at random and dropping; "retention" adds 1,400 pages to 200;
"costs" has CPU seconds and bytes. Intervals draw questions. Results are stored way by way: an interrupted run goes on.
Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from memograft import Document, Engine, FastMem, LexicalEmbedder, Mac, MacBank, Memory, Request, Sampling, VectorStore
from memograft.evaluation.metrics import interval
from memograft.evaluation.provenance import provenance
from memograft.evaluation.scores import exact_match, f1, holds
from memograft.memory.mac import folder
from memograft.memory.mac.networks import hierarchical

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes" / "tiny"))
from sets import Item, items

SAMPLING = Sampling(max_new_tokens=32)
Row = dict[str, Any]


class Rows:
    """What was measured, in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.rows: list[Row] = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def of(self, part: str, seed: int, way: str, measured: Callable[[], Row]) -> None:
        """Measure it unless it is there."""
        key = {"part": part, "seed": seed, "way": way}
        if not any(key.items() <= row.items() for row in self.rows):
            self.rows.append(key | measured())
            with self._file.open("a") as sink:
                sink.write(json.dumps(self.rows[-1]) + "\n")


def answered(
    engine: Engine, asked: Sequence[Item], documents: Sequence[Sequence[Document]], memory: Memory | None
) -> Row:
    """Scores of each question, and the time of all."""
    requests = [
        Request(item.question, documents=own, memory=memory, sampling=SAMPLING)
        for item, own in zip(asked, documents, strict=True)
    ]
    began = time.process_time()
    answers = engine.answer_batch(requests)
    took = time.process_time() - began
    pairs = [(answer.text, item.answer) for answer, item in zip(answers, asked, strict=True)]
    return {
        "right": [float(holds(answer.text, item.right)) for answer, item in zip(answers, asked, strict=True)],
        "exact": [float(exact_match(text, [own])) for text, own in pairs],
        "f1": [f1(text, [own]) for text, own in pairs],
        "unfinished": sum(answer.finish_reason == "length" for answer in answers),
        "seconds": took,
    }


def banked(engine: Engine, path: Path, mac: Path, pages: Sequence[str]) -> MacBank:
    bank = MacBank(path, mac)
    bank.add(engine, pages, progress=False)
    return bank


def changed(source: MacBank, path: Path, mac: Path, tokens: torch.Tensor) -> MacBank:
    """A bank with other modulations, one for each row."""
    from memograft.memory.mac.entries import Name

    bank = MacBank(path, mac)
    with bank._writing():
        bank._commit([], [Name({str(n): ""}) for n in range(len(tokens))], tokens)
    return bank


def quality(engine: Engine, rows: Rows, mac: Path, seed: int, size: int, questions: int, place: Path) -> None:
    """MAC, retrieval and both, and the controls, for a bank of `size` pages."""
    asked, pages = drawn(seed, size)
    asked = asked[:questions]
    bank = banked(engine, place / "bank", mac, pages)
    _, others = drawn(seed + 1000, size)
    unrelated = banked(engine, place / "unrelated", mac, others)
    tokens = bank.modulations()
    order = torch.stack(
        [torch.randperm(len(tokens), generator=torch.Generator().manual_seed(n)) for n in range(tokens.shape[1])], 1
    )
    shuffled = changed(bank, place / "shuffled", mac, tokens[order, torch.arange(tokens.shape[1])])
    nothing: list[list[Document]] = [[] for _ in asked]
    with VectorStore(LexicalEmbedder(), place / "store") as store:
        store.add(pages)
        found = {
            f"{name} top-{k}": [[hit.document for hit in store.search(i.question, k, mode=mode)] for i in asked]
            for name, mode in (("BM25", "text"), ("vector store", "vector"))
            for k in (1, 5)
        }
    own = Mac(str(bank.path))
    ways: dict[str, tuple[Sequence[Sequence[Document]], Memory | None]] = {"no page": (nothing, None)}
    ways |= {name: (documents, None) for name, documents in found.items()}
    best = found["BM25 top-1"]
    ways |= {
        "MAC": (nothing, own),
        "MAC + BM25 top-1": (best, own),
        "FastMem + BM25 top-1": (best, FastMem()),
        "MAC + FastMem + BM25 top-1": (best, Mac(str(bank.path), memory=FastMem())),
        "MAC, bank of other pages": (nothing, Mac(str(unrelated.path))),
        "MAC, numbers exchanged among pages": (nothing, Mac(str(shuffled.path))),
        "MAC, 16 at a time": (nothing, Mac(str(bank.path), group=16)),
    }
    for way, (documents, memory) in tqdm(ways.items(), desc=f"quality, seed {seed}"):
        rows.of("quality", seed, way, lambda d=documents, m=memory: answered(engine, asked, d, m))
    for share in (0.5, 0.25):
        most, rng = max(1, round(share * len(tokens))), random.Random(seed)
        merged = banked(engine, place / f"merged-{share}", mac, pages)
        merged.merge(most)
        left = tokens[sorted(rng.sample(range(len(tokens)), most))]
        dropped = changed(bank, place / f"dropped-{share}", mac, left)
        parts = np.array_split(rng.sample(range(len(tokens)), len(tokens)), most)
        means = torch.stack([tokens[list(part)].float().mean(0) for part in parts])
        averaged = changed(bank, place / f"averaged-{share}", mac, means)
        for how, cut in {"nearest merged": merged, "dropped": dropped, "averaged at random": averaged}.items():
            memory = Mac(str(cut.path))
            rows.of("bounded", seed, f"{share:.0%}, {how}", lambda m=memory: answered(engine, asked, nothing, m))


def retention(engine: Engine, rows: Rows, mac: Path, seed: int, questions: int, place: Path) -> None:
    """Questions about the first 200 pages, before and after 1,400 more were added."""
    asked, pages = drawn(seed + 2000, 1600)
    first = set(pages[:200])
    asked = [item for item in asked if set(item.documents) <= first][:questions]
    bank = banked(engine, place / "stream", mac, pages[:200])
    nothing: list[list[Document]] = [[] for _ in asked]
    memory = Mac(str(bank.path))
    rows.of("retention", seed, "200 pages", lambda: answered(engine, asked, nothing, memory))
    bank.add(engine, pages, progress=False)
    rows.of("retention", seed, "1,600 pages", lambda: answered(engine, asked, nothing, memory))


def costs(engine: Engine, rows: Rows, mac: Path, place: Path) -> None:
    """CPU seconds for each page and question, and bytes."""
    _, pages = drawn(0, 1000)
    bank, times = MacBank(place / "added", mac), list[float]()
    for start in range(0, 200, 40):
        began = time.process_time()
        bank.add(engine, pages[start : start + 40], progress=False)
        times.append((time.process_time() - began) / 40)
    rows.of("costs", 0, "a page added", lambda: {"seconds": statistics.median(times), "bytes": bank.nbytes / len(bank)})
    with VectorStore(LexicalEmbedder(), place / "costs") as store:
        began = time.process_time()
        store.add(pages)
        took = (time.process_time() - began) / len(pages)
        size = sum(file.stat().st_size for file in (place / "costs").iterdir()) / len(pages)
        rows.of("costs", 0, "a page in a vector store", lambda: {"seconds": took, "bytes": size})
        for mode in ("text", "vector"):
            each = [_timed(lambda n=n, mode=mode: store.search(pages[n][:40], 1, mode=mode)) for n in range(20)]
            rows.of("costs", 0, f"search, {mode}, 1,000 pages", lambda e=each: {"seconds": statistics.median(e)})
    tokens = bank.modulations().float()
    networks = engine.with_model(lambda backbone, _: bank.weights(backbone).networks)
    asked = torch.randn(1, tokens.shape[1], tokens.shape[2])
    for count in (100, 1_000, 10_000):
        many = tokens.repeat(-(-count // len(tokens)), 1, 1)[:count]
        for way, part in {
            "at once": lambda m=many: networks.aggregate(asked, m.flatten(0, 1)),
            "16 at a time": lambda m=many: hierarchical(networks, asked, m, 16),
        }.items():
            each = [_timed(part) for _ in range(6)][1:]
            rows.of("costs", 0, f"aggregation, {count:,}, {way}", lambda e=each: {"seconds": statistics.median(e)})


@torch.no_grad()
def _timed(part: Callable[[], object]) -> float:
    began = time.process_time()
    part()
    return time.process_time() - began


def drawn(seed: int, size: int) -> tuple[list[Item], list[str]]:
    """Questions, and the first `size` pages of theirs; the questions' pages are among these."""
    made = items("unseen", size, f"mac-{seed}")
    pages = list(dict.fromkeys(text for item in made for text in item.documents))[:size]
    there = set(pages)
    return [item for item in made if set(item.documents) <= there], pages


def table(rows: Sequence[Row]) -> dict[str, Row]:
    """Part and way -> scores over all seeds, with intervals; and differences of ways that were asked the same."""
    found: dict[str, Row] = {}
    pooled: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        pooled.setdefault((row["part"], row["way"]), []).append(row)
    for (part, way), own in pooled.items():
        if "right" not in own[0]:
            found[f"{part}: {way}"] = {key: own[0][key] for key in ("seconds", "bytes") if key in own[0]}
            continue
        scores = {key: np.array([v for row in own for v in row[key]]) for key in ("right", "exact", "f1")}
        found[f"{part}: {way}"] = {
            "n": len(scores["right"]),
            "accuracy": round(float(scores["right"].mean()), 4),
            "interval": interval(scores["right"]),
            "exact": round(float(scores["exact"].mean()), 4),
            "f1": round(float(scores["f1"].mean()), 4),
            "unfinished": sum(row["unfinished"] for row in own),
            "seconds": round(sum(row["seconds"] for row in own) / len(scores["right"]), 4),
            "by_seed": [round(float(np.mean(row["right"])), 4) for row in own],
        }
    for part, way, other in (
        ("quality", "MAC", "no page"),
        ("quality", "MAC + BM25 top-1", "BM25 top-1"),
        ("quality", "MAC + FastMem + BM25 top-1", "FastMem + BM25 top-1"),
        ("quality", "MAC, 16 at a time", "MAC"),
        ("retention", "1,600 pages", "200 pages"),
    ):
        if (part, way) in pooled:
            mine, its = (np.array([v for row in pooled[part, name] for v in row["right"]]) for name in (way, other))
            found[f"{part}: {way}"] |= {
                "against": other,
                "difference": round(float((mine - its).mean()), 4),
                "difference_interval": interval(mine - its),
                "ratio": round(float(mine.mean() / its.mean()), 4) if its.mean() else None,
            }
    return found


def main() -> None:
    """Parse the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mac", type=Path, required=True, help="folder of a trained MAC of tiny")
    parser.add_argument("--bank", type=int, default=100, help="pages of a bank")
    parser.add_argument("--questions", type=int, default=60, help="of each bank, at most")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    rows = Rows(args.out / "rows.jsonl")
    with Engine.from_pretrained("tiny", max_batch=32) as engine:
        for seed in args.seeds:
            with TemporaryDirectory() as place:
                quality(engine, rows, args.mac, seed, args.bank, args.questions, Path(place))
                retention(engine, rows, args.mac, seed, args.questions, Path(place))
        with TemporaryDirectory() as place:
            costs(engine, rows, args.mac, Path(place))
    found = table(rows.rows)
    for name, row in found.items():
        if "accuracy" in row:
            low, high = row["interval"]
            print(
                f"{name:55}{row['accuracy']:7.3f} [{low:.3f}, {high:.3f}]  F1 {row['f1']:.3f}  {row['seconds']:.3f} s"
            )
        else:
            print(f"{name:55}" + ", ".join(f"{key} {value:.5f}" for key, value in row.items()))
    record = {"benchmark": "mac", "model": "tiny", "data": "invented pages, recipes/tiny/sets.py", "bank": args.bank}
    record |= {"questions": args.questions, "seeds": args.seeds, "mac": folder.about(args.mac).training}
    print(json.dumps(record | {"results": found} | provenance(torch.device("cpu"))))


if __name__ == "__main__":
    main()
