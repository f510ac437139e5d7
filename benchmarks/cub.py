"""Three kinds of pages, as CUB (arXiv 2505.16518) compares them, of two sets.

    python benchmarks/cub.py NQSWAP --model smollm2 --picture cub.png

Gold and conflicting pages are NQ-SWAP's, as they are and with another answer in them. Irrelevant pages are those of the
bundled set "elsewhere", with the questions that the model answers without a page: it answers too few of NQ-SWAP's to
show harm. `memograft eval --cub` compares the pages of one set; `memograft.evaluation.utilisation` defines what
is counted. Answers are kept in a folder, and an interrupted run continues. Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from memograft import Engine
from memograft.evaluation import plots
from memograft.evaluation.items import world
from memograft.evaluation.known import known
from memograft.evaluation.methods import METHODS
from memograft.evaluation.provenance import provenance
from memograft.evaluation.readers import read
from memograft.evaluation.runner import run
from memograft.evaluation.utilisation import table, utilisation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nqswap", help="NQ-SWAP: .json or .jsonl, packed or not")
    parser.add_argument("--model", default="smollm2", help="an id, a folder, or a name that Engine takes")
    parser.add_argument("--method", nargs="+", choices=METHODS, default=["CAD", "memorized", "memorized, CAD"])
    parser.add_argument("--n", type=int, default=300, help="questions of NQ-SWAP")
    parser.add_argument("--most", type=int, help="questions about something else at most; left out, all that are known")
    parser.add_argument("--folder", type=Path, default=Path("runs/cub"), help="keeps the answers")
    parser.add_argument("--picture", type=Path, required=True, help="bars, a .png file")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    plots.check_picture(args.picture)
    methods = {name: METHODS[name] for name in dict.fromkeys(["plain", *args.method])}
    closed = {"no document": METHODS["no document"]}
    relevant = read(args.nqswap, contexts=["agrees", "contradicts"], n=args.n)
    with Engine.from_pretrained(args.model) as engine:
        elsewhere, unknown = known(
            engine, [item for item in world("test") if item.set == "elsewhere"], args.most, args.folder
        )
        records = run(engine, methods | closed, elsewhere, args.folder)
        for name, by_set in run(engine, methods, relevant.items, args.folder, ignore_case=True).items():
            records[name] |= by_set
        about = {"fingerprint": engine.fingerprint, **provenance(engine.model.device)}
    found = utilisation(records)
    sizes = ", ".join(f"{cell['n']} {context}" for context, cell in found["plain"].items() if context != "total")
    plots.bars(found, args.picture, f"Three kinds of pages, {args.model}: {sizes}")
    rows = [row for by_set in records.values() for cell in by_set.values() for row in cell]
    record = {
        "benchmark": "cub",
        "model": args.model,
        "split": "test",
        "sets": {"gold": "NQ-SWAP, agrees", "conflicting": "NQ-SWAP, contradicts", "irrelevant": "world, elsewhere"},
        "skipped": {**relevant.skipped, "elsewhere: the model does not answer it without a document": unknown},
        "utilisation": found,
        "settings": {name: method.settings() for name, method in (methods | closed).items()},
        "commits_of_the_answers": sorted({row["commit"] for row in rows}),
        **about,
    }
    print(table(found))
    print(json.dumps(record))


if __name__ == "__main__":
    main()
