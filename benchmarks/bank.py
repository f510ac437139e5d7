"""What a bank saves for documents that return, in the same process and after a restart, with and without prefix files.

    python benchmarks/bank.py nqswap-dev.jsonl.xz

Two questions are asked about each set of five pages: the question of the data set, then another one. "again" asks the
second question of the engine that answered the first. "restart" asks it of a new engine with the same folder. An engine
without a bank also answers it. The two engines take turns in being first. Ratios are medians of the ratios to the
engine without a bank. CPU time is measured, because other work on a shared core does not change it. Prints a table and,
last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from memograft import Answer, Bank, Engine, FastMem, Request, Sampling
from memograft.evaluation.items import Item
from memograft.evaluation.provenance import provenance
from memograft.evaluation.readers.reading import read

Row = dict[str, float]
OTHER = "What is this page about?"
FORMS: tuple[Literal["exact", "int8"] | None, ...] = (None, "exact", "int8")
MEMORY = FastMem(relevance=None, fallback=False)  # memorizes all pages for any question; no second row


def answered(engine: Engine, item: Item, question: str, new: int) -> tuple[float, Answer]:
    """Return the CPU seconds and the answer."""
    request = Request(question, documents=item.documents, memory=MEMORY, sampling=Sampling(new))
    began = time.process_time()
    answer = engine.answer(request)
    return time.process_time() - began, answer


def measure(model: str, plain: Engine, items: Sequence[Item], bank: Bank, new: int, ask_first: bool) -> list[Row]:
    """Ask the second question about each page of an engine with this bank and of one without; each is first in turn."""
    rows: list[Row] = []
    with Engine.from_pretrained(model, bank=bank) as engine:
        engine.answer("Warm?")
        for n, item in enumerate(tqdm(items, desc="pages")):
            if ask_first:
                answered(engine, item, item.question, new)
            found = {e: answered(e, item, OTHER, new) for e in ((plain, engine) if n % 2 else (engine, plain))}
            (spent, answer), (alone, base) = found[engine], found[plain]
            rows.append(
                {
                    "seconds": spent,
                    "ratio": spent / alone,
                    "same_answer": answer.token_ids == base.token_ids,
                    "same_first_token": answer.token_ids[:1] == base.token_ids[:1],
                    "reused": answer.memory is not None and answer.memory.reused,
                    "cached_tokens": answer.usage.cached_tokens,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="NQ-SWAP: nqswap-dev.jsonl")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--n", type=int, default=40)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    items, results = read(args.data, contexts=["one of five"], split="test", n=args.n).items, {}
    with Engine.from_pretrained(args.model) as plain, tempfile.TemporaryDirectory() as folder:
        for form in FORMS:
            path = Path(folder) / str(form)
            for name in ("again", "restart"):
                bank = Bank(path, prefix_files=form)
                rows = measure(args.model, plain, items, bank, args.new_tokens, ask_first=name == "again")
                results[f"{name}, {form}"] = {
                    measure: round(statistics.mean(row[measure] for row in rows), 3) for measure in rows[0]
                } | {
                    "ratio": round(statistics.median(row["ratio"] for row in rows), 3),
                    "bytes": round(sum(entry.size for entry in bank.entries()) / len(items)),
                }
    print(f"| | {' | '.join(results['again, None'])} |\n|---|---|---|---|---|---|---|---|")
    for name, row in results.items():
        print(f"| {name} | {' | '.join(str(value) for value in row.values())} |")
    record = {
        "benchmark": "bank",
        "model": args.model,
        "data": Path(args.data).name,
        "n": len(items),
        "new_tokens": args.new_tokens,
        "threads": args.threads,
        "results": results,
        **provenance(torch.device("cpu")),
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
