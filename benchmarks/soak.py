"""Runs tests/attack with one seed after the other for a given time.

    python benchmarks/soak.py                 # an hour; an interrupted run continues
    python benchmarks/soak.py --minutes 5

Each round runs all attacks with its own seed in a new process. The counts and failures are kept in runs/soak, with the
output of each round that failed. Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from memograft.evaluation.provenance import provenance

ROOT = Path(__file__).parent.parent


def lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


def attack(seed: int, out: Path) -> dict[str, Any]:
    """Run one round; its counts are written to the file of its seed."""
    tally = out / f"{seed}.jsonl"
    tally.unlink(missing_ok=True)  # from an interrupted round
    start = time.monotonic()
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--timeout=900",
            str(ROOT / "tests" / "attack"),
        ],
        cwd=ROOT,
        env=os.environ | {"MEMOGRAFT_SEED": str(seed), "MEMOGRAFT_TALLY": str(tally)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if run.returncode:
        (out / f"{seed}.txt").write_text(run.stdout, encoding="utf-8")
    failed = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if run.returncode and not failed:
        failed = [f"pytest ended with {run.returncode}"]
    return {"seed": seed, "seconds": round(time.monotonic() - start, 1), "failed": failed}


def tried(out: Path, rounds: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """For each attack, the counts of what was tried."""
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    for done in rounds:
        for line in lines(out / f"{done['seed']}.jsonl"):
            sums[line.pop("attack")].update({name: n for name, n in line.items() if name != "seed"})
    return {name: dict(found) for name, found in sorted(sums.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "soak", help="folder of what is done")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    done = list(lines(args.out / "rounds.jsonl"))
    with tqdm(total=round(args.minutes * 60), unit="s") as bar:
        while (spent := sum(r["seconds"] for r in done)) < args.minutes * 60:
            bar.update(round(spent) - bar.n)
            done.append(attack(len(done), args.out))
            with (args.out / "rounds.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(done[-1]) + "\n")
    results, failed = tried(args.out, done), [f"seed {r['seed']}: {line}" for r in done for line in r["failed"]]
    print("| attack | tried |\n|---|---|")
    for name, counts in results.items():
        print(f"| {name} | {', '.join(f'{n} {what}' for what, n in counts.items())} |")
    print("\n".join(["", f"{len(done)} rounds, {len(failed)} failures", *failed]))
    record = {"benchmark": "soak", "rounds": len(done), "results": results, "failed": failed}
    record["seconds"] = round(sum(r["seconds"] for r in done))
    print(json.dumps(record | provenance(torch.device("cpu"))))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
