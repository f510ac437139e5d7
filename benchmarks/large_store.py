"""A store with millions of passages and an "ivfpq" index, beside the same index in raw FAISS.

    python benchmarks/large_store.py FOLDER --count 1000000 --out benchmarks/results/large-store.json

Measures, for N vectors of 384 numbers and N short texts: the time and the CPU time to build, the size of the files, the
peak of memory while building and while serving, the time to open, the time of a question, and recall@10
against an exact search. Each step is a process of its own, and what a step measured is kept in FOLDER, so an
interrupted run continues with the next step. The questions to the store and to raw FAISS take turns. With one thread,
CPU times can be compared even if other programs use the cores.

A vector is a center plus noise, scaled to length 1. There are N / 100 centers. Centers and noise are normal, with
standard deviations that fall as 1 / sqrt(dimension), as those of text embeddings roughly do, in a random rotation.
Questions are drawn as the passages are. A text has 12 words, drawn by Zipf's law. Recall depends on this choice.

Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from memograft import Document, IndexSettings, VectorStore

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]
Measured = dict[str, float | int]

DIMENSION, K, AT_ONCE, SETTINGS = 384, 10, 10_000, IndexSettings("ivfpq")
SEARCHES = [(nprobe, rerank) for nprobe in (16, 64, 256) for rerank in (1, 4, 10)]
STEPS = ("exact", "raw", "build", "open", "search")


class Task(NamedTuple):
    folder: Path
    count: int
    questions: int
    repeat: int


class Given:
    """An embedder that is never called: vectors are given."""

    dimension, fingerprint = DIMENSION, "given"

    def config(self) -> dict[str, object]:
        return {"type": "given"}

    def embed_documents(self, texts: list[str]) -> Floats:
        raise NotImplementedError

    def embed_query(self, text: str) -> Floats:
        raise NotImplementedError


class Data:
    """Draws vectors and texts; the same for the same number of passages."""

    def __init__(self, count: int) -> None:
        random = np.random.default_rng(0)
        self.count = count
        self._spread = (1 / np.sqrt(1 + np.arange(DIMENSION))).astype(np.float32)
        self._turn = np.linalg.qr(random.standard_normal((DIMENSION, DIMENSION), np.float32))[0]
        self._centers = random.standard_normal((max(1, count // 100), DIMENSION), np.float32) * self._spread

    def vectors(self, seed: int, count: int) -> Floats:
        random = np.random.default_rng([1, seed])
        noise = random.standard_normal((count, DIMENSION), np.float32) * self._spread
        rows = (self._centers[random.integers(0, len(self._centers), count)] + noise) @ self._turn
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def parts(self) -> Iterator[tuple[int, Floats]]:
        """(number of the first passage, vectors), in steps."""
        for start in tqdm(range(0, self.count, AT_ONCE), leave=False):
            yield start, self.vectors(start, min(AT_ONCE, self.count - start))

    def documents(self, start: int, count: int) -> list[Document]:
        words = np.random.default_rng([2, start]).zipf(1.3, (count, 12)) % 50_000
        return [
            Document(" ".join(f"w{n}" for n in row), f"passage-{start + i}") for i, row in enumerate(words.tolist())
        ]

    def questions(self, count: int) -> Floats:
        return self.vectors(2**40, count)


class Clock:
    """Adds up the seconds and the CPU seconds inside `with` blocks."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began[0]
        self.cpu_seconds += time.process_time() - self._began[1]

    def read(self) -> Measured:
        return {"seconds": round(self.seconds, 2), "cpu_seconds": round(self.cpu_seconds, 2)}


def peak() -> Measured:
    """The largest memory of this process so far."""
    return {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def exact(task: Task) -> Measured:
    """Find the nearest passages of each question by comparing all, and write their numbers."""
    data = Data(task.count)
    questions = data.questions(task.questions)
    scores, best = np.full((task.questions, K), -2, np.float32), np.zeros((task.questions, K), np.int64)
    for start, vectors in data.parts():
        numbers = np.broadcast_to(np.arange(start, start + len(vectors)), (task.questions, len(vectors)))
        scores, best = np.hstack([scores, questions @ vectors.T]), np.hstack([best, numbers])
        order = np.argpartition(-scores, K, axis=1)[:, :K]
        scores, best = np.take_along_axis(scores, order, 1), np.take_along_axis(best, order, 1)
    np.save(task.folder / "exact.npy", best)
    return {}


def raw(task: Task) -> Measured:
    """Build the index in FAISS alone, with sqrt(N) clusters from a sample as large as the store's.

    The store has as many clusters as at its last training, see `IndexSettings`; `opening` records both numbers.
    """
    data, building, clusters = Data(task.count), Clock(), int(task.count**0.5)
    sample = np.random.default_rng(3).permutation(task.count)[: max(64 * clusters, 65_536)]
    chosen = np.concatenate([vectors[np.isin(np.arange(s, s + len(vectors)), sample)] for s, vectors in data.parts()])
    with building:
        index = faiss.IndexIVFPQ(
            faiss.IndexFlatIP(DIMENSION),
            DIMENSION,
            clusters,
            SETTINGS.code_size(DIMENSION),
            8,
            faiss.METRIC_INNER_PRODUCT,
        )
        index.train(chosen)
    for _, vectors in data.parts():
        with building:
            index.add(vectors)
    file = task.folder / "raw.faiss"
    faiss.write_index(index, str(file))
    return {**building.read(), **peak(), "bytes": file.stat().st_size}


def build(task: Task) -> Measured:
    """Add all passages to a new store, thousands a call, and close it."""
    data, adding, closing = Data(task.count), Clock(), Clock()
    shutil.rmtree(task.folder / "store", ignore_errors=True)
    before = peak()["peak_mib"]
    store = VectorStore(Given(), task.folder / "store", index=SETTINGS)
    for start, vectors in data.parts():
        documents = data.documents(start, len(vectors))
        with adding:
            store.add(documents, vectors)
    with closing:
        store.close()
    return {
        **adding.read(),
        "close_seconds": closing.read()["seconds"],
        "peak_mib_before": before,
        **peak(),
        **sizes(task),
    }


def sizes(task: Task) -> Measured:
    """The sizes of a closed store's files."""
    by_suffix = {file.suffix: file.stat().st_size for file in (task.folder / "store").iterdir()}
    return {"database_bytes": by_suffix[".sqlite3"], "index_bytes": by_suffix[".faiss"]}


def opening(task: Task) -> Measured:
    """Open the store for reading and for writing, and ask a first question. The peak of a writer includes both."""
    question, found = Data(task.count).questions(1)[0], dict[str, float | int]()
    for name, read_only in (("reader", True), ("writer", False)):
        clock = Clock()
        with clock:
            store = VectorStore(Given(), task.folder / "store", index=SETTINGS, read_only=read_only)
        store.search_by_vector(question, K)
        found |= {f"{name}_seconds": clock.read()["seconds"], f"{name}_peak_mib": peak()["peak_mib"]}
        store.close()
    clock = Clock()
    with clock:
        index = faiss.read_index(str(task.folder / "raw.faiss"))
    (file,) = (task.folder / "store").glob("*.faiss")
    mapped = faiss.read_index(str(file))  # owns the index inside
    clusters = faiss.downcast_index(mapped.index).nlist
    return found | {"raw_seconds": clock.read()["seconds"], "clusters": clusters, "raw_clusters": index.nlist}


def search(task: Task) -> Measured:
    """Ask all questions of the store and of raw FAISS in turns, with each setting; the medians of the rounds."""
    questions, right = Data(task.count).questions(task.questions), np.load(task.folder / "exact.npy")
    index = faiss.read_index(str(task.folder / "raw.faiss"))
    stores = {
        (nprobe, rerank): VectorStore(
            Given(), task.folder / "store", index=replace(SETTINGS, nprobe=nprobe, rerank=rerank), read_only=True
        )
        for nprobe, rerank in SEARCHES
    }

    def of_raw(nprobe: int) -> Callable[[Floats], list[int]]:
        parameters = faiss.SearchParametersIVF(nprobe=nprobe)
        return lambda question: index.search(question[None], K, params=parameters)[1][0].tolist()

    def of_store(store: VectorStore) -> Callable[[Floats], list[int]]:
        return lambda question: [
            int(hit.document.id.removeprefix("passage-")) for hit in store.search_by_vector(question, K)
        ]

    ways = {f"raw {nprobe}": of_raw(nprobe) for nprobe, _ in SEARCHES}
    ways |= {f"store {nprobe} {rerank}": of_store(store) for (nprobe, rerank), store in stores.items()}
    clocks, measured = {name: list[Clock]() for name in ways}, dict[str, float | int]()
    for turn, (name, ask) in tqdm(list(itertools.product(range(task.repeat + 1), ways.items()))):
        clock = Clock()
        with clock:
            found = [ask(question) for question in questions]
        if turn:  # the first one is a warm-up
            clocks[name].append(clock)
        hits = sum(len(set(ids) & set(best)) for ids, best in zip(found, right.tolist(), strict=True))
        measured[f"{name} recall"] = round(hits / right.size, 4)
    for name, rounds in clocks.items():
        pairs = list(zip(clocks[f"raw {name.split()[1]}"], rounds, strict=True))
        measured[f"{name} times raw"] = round(
            statistics.median(own.cpu_seconds / raw.cpu_seconds for raw, own in pairs), 2
        )
        measured[f"{name} cpu_ms"] = round(
            1000 * statistics.median(own.cpu_seconds for _, own in pairs) / len(questions), 3
        )
        measured[f"{name} ms"] = round(1000 * statistics.median(own.seconds for _, own in pairs) / len(questions), 3)
    return measured


def table(results: dict[str, Measured]) -> str:
    """The Markdown table of the searches."""
    lines = [
        "| search | nprobe | rerank | recall@10 | CPU ms a question | raw FAISS = 1 |",
        "|---|---|---|---|---|---|",
    ]
    found = results["search"]
    for name in [key.removesuffix(" recall") for key in found if key.endswith(" recall")]:
        way, nprobe, rerank = [*name.split(), ""][:3]
        cells = f"{found[f'{name} recall']:.3f} | {found[f'{name} cpu_ms']:.2f} | {found[f'{name} times raw']:.2f}"
        lines.append(f"| {'raw FAISS' if way == 'raw' else 'store'} | {nprobe} | {rerank} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", type=Path, help="for the store and the steps' results, on a disk with 4 kB per passage"
    )
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="for the JSON, such as benchmarks/results/large-store.json")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    faiss.omp_set_num_threads(args.threads)
    if args.step:
        task = Task(args.folder, args.count, args.questions, args.repeat)
        steps = dict(zip(STEPS, (exact, raw, build, opening, search), strict=True))
        (args.folder / f"{args.step}.json").write_text(json.dumps(steps[args.step](task)))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    for step in STEPS:
        if not (args.folder / f"{step}.json").exists():
            subprocess.run([sys.executable, *sys.argv, "--step", step], check=True)
    results = {step: json.loads((args.folder / f"{step}.json").read_text()) for step in STEPS}
    print(table(results))

    import torch  # here, so that it does not count as memory of a step

    from memograft.evaluation.provenance import provenance

    torch.set_num_threads(args.threads)
    record = {
        "benchmark": "large-store",
        "vectors": f"{args.count} x {DIMENSION}",
        "k": K,
        "questions": args.questions,
        "repetitions": args.repeat,
        "results": results,
        **provenance(torch.device("cpu")),
    }
    record["versions"] |= {name: version(name) for name in ("faiss-cpu", "numpy")}
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
