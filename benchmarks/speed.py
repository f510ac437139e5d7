"""What memorizing costs, beside the targets: memorizing, answers, memory, and growth with the document's length.

    make bench NQSWAP=nqswap-dev.jsonl.xz                    # all rows
    python benchmarks/speed.py --row 0.5b --row contrast     # some of them; none of these needs data

Rows: smollm2 (SmolLM2-135M-Instruct, pages of NQ-SWAP), memories, contrasts, answers and drafts (with it), 0.5b and
1.7b (memorizing, in the shapes of Qwen2.5-0.5B and Qwen3-1.7B with random weights), and in Qwen2.5-0.5B's shape peak,
growth, kept, carried, compacting and contrast. Parts that are compared take turns within a repetition. A ratio is the
median over the repetitions, with the least and the largest, of CPU time, because a shared machine's clock also counts
its neighbours; the last but one column has the ratio by the clock. Where a target is missed, the ratio of the
floating-point operations in matrix products is the limit for exact losses.
Finished rows are kept in --out and not measured again at the same commit with the same options (with --any-commit,
whatever the commit). Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from costs import answering, decoding, memorizing, peak
from costs.clock import Line
from costs.models import SHAPES

from memograft import FastMem
from memograft.evaluation.provenance import provenance

WITH_DATA = {"smollm2", "memories", "contrasts", "answers", "drafts"}
LENGTHS = ((256, 5), (1024, 5), (4096, 2), (8192, 1))  # of growth: tokens, repetitions


def rows(args: argparse.Namespace) -> dict[str, Callable[[], list[Line]]]:
    """What each row measures."""
    half, repeat = "qwen-0.5b", args.repeat
    return {
        "smollm2": lambda: memorizing.smollm2(args.nqswap, args.pages, repeat),
        "memories": lambda: decoding.many_memories(args.nqswap, args.pages, repeat),
        "contrasts": lambda: decoding.contrasts(args.nqswap, args.pages, repeat),
        "answers": lambda: decoding.answers(args.nqswap, args.pages, repeat),
        "drafts": lambda: decoding.drafts(args.nqswap, 2 * args.pages),
        "0.5b": lambda: memorizing.shape(half, 512, 0.7, repeat),
        "1.7b": lambda: memorizing.shape("qwen3-1.7b", 1024, 0.4, min(repeat, 3)),
        "peak": lambda: peak.extra(half, 1024, 0.10, min(repeat, 3)),
        "growth": lambda: memorizing.growth(half, LENGTHS, 1.1),
        "kept": lambda: answering.kept(half, 1024, 0.08, repeat),
        "carried": lambda: answering.carried(half, 1024, {"kept": 0.10, "compacted": 0.08, "gist": 0.07}, repeat),
        "compacting": lambda: answering.compacting(half, 512, 2.0, repeat),
        "contrast": lambda: answering.contrast(half, 256, 1.10, repeat),
    }


def show(lines: list[dict[str, Any]]) -> None:
    """Print the table."""
    print("| | median | least | largest | target | met | by the clock | operations |")
    print("|---|---|---|---|---|---|---|---|")
    for line in (Line(**values) for values in lines):
        target = "" if line.target is None else f"{'>=' if line.at_least else '<='} {line.target:g}"
        met = {None: "", True: "yes", False: "no"}[line.met]
        rest = ("" if value is None else f"{value:.2f}" for value in (line.wall, line.flops))
        numbers = " | ".join(f"{value:.2f}" for value in (line.median, line.least, line.largest))
        print(f"| {line.name} | {numbers} | {target} | {met} | {' | '.join(rest)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(rows(argparse.Namespace(repeat=1)))
    parser.add_argument("--row", action="append", choices=names, help="may be repeated; left out, all")
    parser.add_argument("--nqswap", help="nqswap-dev.jsonl; without it, SmolLM2's rows are left out")
    parser.add_argument("--pages", type=int, default=8, help="of a batch")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/speed.json"), help="keeps finished rows")
    parser.add_argument("--any-commit", action="store_true", help="keep finished rows of other commits too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    chosen = args.row or [name for name in names if args.nqswap or name not in WITH_DATA]
    if not args.nqswap and set(chosen) & WITH_DATA:
        parser.error(f"the rows {', '.join(sorted(WITH_DATA))} need --nqswap FILE")
    origin = provenance(torch.device("cpu"))
    options = {"pages": args.pages, "repeat": args.repeat, "threads": args.threads}
    kept = json.loads(args.out.read_text()) if args.out.exists() else {}
    for name in chosen:
        old = kept.get(name)
        if old is None or old["options"] != options or (old["commit"] != origin["commit"] and not args.any_commit):
            lines, load = [asdict(line) for line in rows(args)[name]()], round(os.getloadavg()[1], 2)
            kept[name] = {"commit": origin["commit"], "options": options, "load": load, "lines": lines}
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(kept, indent=1) + "\n")
    show([line for name in chosen for line in kept[name]["lines"]])
    record = {
        "benchmark": "speed",
        "data": Path(args.nqswap).name if args.nqswap else None,
        "dtype": "bfloat16",
        "shapes": {name: SHAPES[name] for name in ("qwen-0.5b", "qwen3-1.7b")},
        "memory": {"smollm2": FastMem().resolved().to_json(), "shapes": memorizing.RANDOM.resolved().to_json()},
        "ordinary_steps": memorizing.ORDINARY_STEPS,
        "results": {name: kept[name]["lines"] for name in chosen},
        "load": {name: kept[name]["load"] for name in chosen},  # of the last five minutes
        "commits": {name: kept[name]["commit"] for name in chosen},
        **options,
        **origin,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
