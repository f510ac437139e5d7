"""How fast workers memorize documents into one bank, and what is left of it when one of them is killed. With tiny.

    python benchmarks/cluster.py --out runs/cluster                      # 10,000 documents with each number of workers
    python benchmarks/cluster.py --out runs/cluster --n 800 --rounds 2   # an indication

    speed    documents a second with 1 and with 2 workers, which take turns: in each round both memorize the same part
             of the documents into an empty bank of their own. A worker has one thread. 1 worker is this process,
             without Ray.
    writes   seconds to write a memory into the bank that has most, and its bytes: writers of a bank take turns
    killed   2 workers memorize a part of the documents, and at a third of them one is killed (SIGKILL). Then the bank
             must have the memory of each document once, undamaged, and a second run must find all and write none

The clock of speed is that of the files: from a worker's third batch to the last document, so that starting processes
and loading models does not count. It is wall time, so nothing else should run on the two cores. Results are stored for
each round: an interrupted run goes on. Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import ray
import torch

from memograft import Document, Engine, FastMem
from memograft.cluster import Memorized, Pool, memorize_all
from memograft.evaluation.provenance import provenance
from memograft.memory.folder import inspected

Result = dict[str, float]
BATCH, WARM = 16, 2  # documents together, and batches of each worker before the clock starts
WORKERS = (1, 2)
TARGET = 1.7  # documents a second of 2 workers, those of 1 = 1
WORDS = ("harbour", "mill", "orchard", "lantern", "bridge", "archive", "kiln", "garden", "tower", "ferry", "quarry")
WORKER = b"ray::MapWorker"  # how Ray Data names its processes


def documents(n: int, seed: int) -> list[Document]:
    """Invented pages of three sentences, about 60 tokens of tiny."""
    rng, pages = random.Random(seed), list[Document]()
    for number in range(n):
        text = ""
        for _ in range(3):
            first, second = rng.sample(WORDS, 2)
            text += f"The {first} of place {number} was opened in {rng.randint(1500, 1999)} behind the {second}. "
        pages.append(Document(text.strip(), str(number)))
    return pages


def memorized(pages: Sequence[Document], bank: Path, workers: int, model: str) -> Memorized:
    return memorize_all(pages, bank, model=model, memory=FastMem(), pool=Pool(workers), batch=BATCH)


def entries(bank: Path) -> dict[str, os.stat_result]:
    """When each memory was written, and in which inode."""
    return {path.name: (path / "memograft.json").stat() for path in bank.glob("[0-9a-f]*") if path.is_dir()}


def speed(pages: Sequence[Document], bank: Path, workers: int, model: str) -> Result:
    """Memorize into an empty bank."""
    shutil.rmtree(bank, ignore_errors=True)
    done = memorized(pages, bank, workers, model)
    assert done.count("made") == len(pages), done.count("failed")
    times = sorted(entry.st_mtime for entry in entries(bank).values())
    warm = WARM * BATCH * workers
    return {"documents_per_second": (len(times) - warm) / (times[-1] - times[warm - 1]), "seconds": done.seconds}


def writes(bank: Path, model: str, count: int = 64) -> Result:
    """Write further memories into a bank, and remove them."""
    with Engine.from_pretrained(model) as engine:
        handle = engine.memorize(documents(1, -1))
    spent, places = list[float](), [bank / f"{'f' * 24}{n:08x}" for n in range(count)]
    for place in places:
        began = time.perf_counter()
        handle.keep(place)
        spent.append(time.perf_counter() - began)
    size = sum(file.stat().st_size for file in places[0].iterdir())
    for place in places:
        shutil.rmtree(place)
    return {"seconds": statistics.median(spent), "bytes": size, "beside": len(entries(bank))}


def killed(pages: Sequence[Document], bank: Path, model: str) -> Result:
    """Memorize with two workers, of which one is killed at a third of the documents."""
    shutil.rmtree(bank, ignore_errors=True)
    gone, over = list[int](), threading.Event()

    def kill() -> None:
        while not over.is_set() and not gone:
            if bank.exists() and len(entries(bank)) >= len(pages) / 3:
                gone.append(min(workers_of(os.getpid())))
                os.kill(gone[0], signal.SIGKILL)
            over.wait(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        done = memorized(pages, bank, 2, model)
    finally:
        over.set()
        killer.join()
    assert gone, "no worker was killed"
    found, wanted = entries(bank), {outcome.memory for outcome in done.outcomes}
    again = memorized(pages, bank, 2, model)
    return {
        "documents": len(pages),
        "lost": len(wanted - set(found)) + done.count("failed"),
        "twice": len(found) - len(wanted),
        "damaged": sum(bool(inspected(bank / id).damaged) for id in found),
        "found_by_a_worker_that_repeated_a_batch": done.count("there"),
        "second_run_made": again.count("made"),
        "second_run_wrote": sum(entry.st_ino != found[id].st_ino for id, entry in entries(bank).items()),
        "seconds": done.seconds,
    }


def workers_of(parent: int) -> list[int]:
    """Ids of the processes of Ray's workers among the descendants of a process."""
    children: dict[int, list[int]] = {}
    names: dict[int, bytes] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            id, own = int(folder.name), int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[id] = (folder / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        children.setdefault(own, []).append(id)
    return [id for id in _descendants(parent, children) if names[id].startswith(WORKER)]


def _descendants(parent: int, children: dict[int, list[int]]) -> list[int]:
    own = children.get(parent, [])
    return [*own, *(id for child in own for id in _descendants(child, children))]


def kept(file: Path, measure: Callable[[], Result]) -> Result:
    """A result that was stored, or a new one."""
    if file.exists():
        stored: Result = json.loads(file.read_text())
        return stored
    result = measure()
    draft = file.with_suffix(".part")
    draft.write_text(json.dumps(result))
    draft.replace(file)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results and banks")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--killed", type=int, default=1000, help="documents of the run in which a worker is killed")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    pages, part = documents(args.n, args.seed), math.ceil(args.n / args.rounds)
    key = f"{args.model}-{args.n}-{args.rounds}-{args.seed}"
    rounds: dict[int, list[Result]] = {workers: [] for workers in WORKERS}
    for number in range(args.rounds):
        some = pages[number * part : (number + 1) * part]
        for workers in WORKERS if number % 2 == 0 else reversed(WORKERS):  # each is first in turn
            file = args.out / f"{key}-{number}-{workers}.json"
            bank = args.out / f"bank-{workers}"
            rounds[workers].append(kept(file, lambda b=bank, w=workers, s=some: speed(s, b, w, args.model)))
    ratios = [
        two["documents_per_second"] / one["documents_per_second"] for one, two in zip(rounds[1], rounds[2], strict=True)
    ]
    written = kept(args.out / f"{key}-writes.json", lambda: writes(args.out / "bank-2", args.model))
    some = pages[: args.killed]
    survived = kept(
        args.out / f"{key}-killed-{len(some)}.json", lambda: killed(some, args.out / "bank-killed", args.model)
    )
    rates = {w: statistics.median(r["documents_per_second"] for r in rounds[w]) for w in WORKERS}
    ratio = {"median": statistics.median(ratios), "least": min(ratios), "largest": max(ratios)}
    print("| workers | documents a second |\n|---|---|")
    for workers, rate in rates.items():
        print(f"| {workers} | {rate:.1f} |")
    met = "yes" if ratio["median"] >= TARGET else "no"
    print(f"2 workers, 1 = 1: {ratio['median']:.2f} [{ratio['least']:.2f}, {ratio['largest']:.2f}], >= {TARGET}: {met}")
    print(f"a write: {1000 * written['seconds']:.1f} ms, {written['bytes']:.0f} bytes, beside {written['beside']:.0f}")
    print(", ".join(f"{name} {value:g}" for name, value in survived.items()))
    record = {
        "benchmark": "cluster",
        "model": args.model,
        "data": "invented pages",
        "n": args.n,
        "rounds": args.rounds,
        "seed": args.seed,
        "batch": BATCH,
        "ray": ray.__version__,
        "documents_per_second": {str(workers): round(rate, 2) for workers, rate in rates.items()},
        "ratio": {name: round(value, 3) for name, value in ratio.items()},
        "target": TARGET,
        "write": written,
        "killed": survived,
        **provenance(torch.device("cpu")),
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
