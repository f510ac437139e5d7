"""The time per generated token with a datastore, by its size and index, compared with plain decoding in the same run.

    python benchmarks/rtd_overhead.py                       # 10,000, 100,000 and 1,000,000 entries: 8 GB of disk
    python benchmarks/rtd_overhead.py --sizes 10000 --kinds flat hnsw

The model has Qwen2.5-0.5B's shape (D = 896) and random weights, in float32. Every repetition decodes plainly and with
each datastore in turn. The ratios are medians of the ratios within a repetition. The time runs from the end of the
prefill to the answer's tokens and references. `Rtd(store, weight=0.3, gate=None)` searches for every token and changes
its distribution; the tokens of the entries differ, and so do the searched states. Batches have one row or 8.

The keys cannot be white noise, which no index can search and no model produces, and a million prefills would take too
long. 4,096 keys are states of this model at the input of the last FFN, from 32 texts of 128 tokens (of 2,000 different
ones, the n-th with probability proportional to 1/n). Each further entry uses two random ones of these states, a and b:
a + u (b - a), with u uniform in 0 to 0.5, plus Gaussian noise with a tenth of each dimension's standard deviation. Its
token is that of a.

Recall is measured against "flat", for 100 states of a different text, which in a random model are far from all entries
(two thirds of the squared distance between two random entries), and for 100 states made like the entries.

Datastores stay in --folder and are used again if they have this model and size. The indexes of one size share their
arrays (hard links), so the keys are in the page cache once, as with a single datastore. Builds and first openings are
measured in separate processes. "peak" is the memory of the process without mapped files, which the system can evict.
Linux only. Prints tables and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import Qwen2Config, Qwen2ForCausalLM

from memograft import Datastore, Engine, Rtd, Sampling
from memograft.decoding.loop import decode
from memograft.decoding.row import Row
from memograft.evaluation.provenance import provenance
from memograft.model.prefill import prefill
from memograft.request import Source
from memograft.rtd.examples import Learned
from memograft.rtd.files import SOURCES, Entries, Files, Header, IndexKind, read_header
from memograft.rtd.index import Neighbours
from memograft.rtd.keys import hidden_states
from memograft.serving.answer import references

SHAPE = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "vocab_size": 151_936}
SIZES, KINDS, ROWS = (10_000, 100_000, 1_000_000), get_args(IndexKind), (1, 8)
TEXTS, TEXT_TOKENS, DIFFERENT, FIRST_TOKEN = 32, 128, 2_000, 300
QUESTIONS, SINGLE, K, WEIGHT, TARGET = 100, 20, 32, 0.3, 1.10
TOWARDS, NOISE = 0.5, 0.1
AT_ONCE, PER_SOURCE = 10_000, 1_000
ABOUT = "about.json"
PROMPT_TOKENS, PLAIN = 64, "plain"

Runner = Callable[[], tuple[float, float]]  # seconds per token: wall clock and CPU


def build(new_tokens: int) -> Engine:
    torch.manual_seed(0)
    config = Qwen2Config(
        **SHAPE,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = Qwen2ForCausalLM(config).eval()
    model.generation_config.min_new_tokens = new_tokens  # all rows generate the same number of tokens
    return Engine(model, Engine.from_pretrained("tiny").tokenizer)


def states(engine: Engine, file: Path) -> None:
    """Write the model's own states: keys (4096, D), the tokens that followed, and queries (100, D)."""
    rng = np.random.default_rng(0)
    odds = 1 / np.arange(1, DIFFERENT + 1)
    texts = FIRST_TOKEN + rng.choice(DIFFERENT, (TEXTS + 1, TEXT_TOKENS + 1), p=odds / odds.sum())
    found = []
    batches = [texts[start : start + 8] for start in range(0, len(texts), 8)]
    learned = [[Learned(tuple(map(int, ids)), 1) for ids in batch] for batch in batches]
    found = [hidden_states(engine._backbone, batch, "ffn_input") for batch in tqdm(learned, desc="states")]
    keys, count = np.concatenate(found), TEXTS * TEXT_TOKENS
    tokens = texts[:TEXTS, 1:].ravel().astype(np.int32)
    np.savez(file, keys=keys[:count], tokens=tokens, questions=keys[count : count + QUESTIONS])


def entries(keys: NDArray[np.float32], tokens: NDArray[np.int32], size: int, seed: int = 1) -> Iterator[Entries]:
    """Yield the first `size` entries, in parts; see the module docstring."""
    deviation = NOISE * keys.std(0)
    for part, start in enumerate(range(0, size, AT_ONCE)):
        rng, numbers = np.random.default_rng([seed, part]), np.arange(start, min(start + AT_ONCE, size))
        a, b = rng.integers(0, len(keys), (2, AT_ONCE))
        u = rng.uniform(0, TOWARDS, (AT_ONCE, 1)).astype(np.float32)
        made = keys[a] + u * (keys[b] - keys[a]) + deviation * rng.standard_normal((AT_ONCE, keys.shape[1]), np.float32)
        a, made = a[: len(numbers)], made[: len(numbers)]
        real = numbers < len(keys)
        a[real], made[real] = numbers[real], keys[numbers[real]]
        values = tokens[a]
        sources, positions = numbers // PER_SOURCE, numbers % PER_SOURCE
        yield Entries(made, values, sources.astype(np.int32), positions.astype(np.int32))


class Peak:
    """Measures this process's memory, without mapped files, four times a second."""

    def __init__(self) -> None:
        self._most, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.25):
            self._most = max(self._most, own_memory())

    def stop(self) -> float:
        """Return the maximum in GiB."""
        self._over.set()
        self._thread.join()
        return round(max(self._most, own_memory()) / 2**20, 2)


def own_memory() -> int:
    """Return the memory in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def place(folder: Path, kind: str, size: int) -> Path:
    return folder / f"{size}-{kind}"


def make(folder: Path, kind: IndexKind, size: int, fingerprint: str, heads: list[int]) -> None:
    """Build one datastore, and write the time and memory of the build beside its files."""
    flat, target, peak = place(folder, "flat", size), place(folder, kind, size), Peak()
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    began = time.perf_counter()
    if kind == "flat":
        known = np.load(folder / f"states-{fingerprint}.npz")
        header, sources = Header(fingerprint, "ffn_input", 0, "flat"), range(-(-size // PER_SOURCE))
        with Datastore(target, None, header, read_only=False, owned=False) as store:
            parts = entries(known["keys"], known["tokens"], size)
            last = next(parts)
            for part in tqdm(parts, total=(size - 1) // AT_ONCE, desc="keys"):
                store._files.append(last)  # `extend` would calibrate again after each
                last = part
            store.extend(last, [Source(f"text {n}", f"Text {n}.", "", {}) for n in sources])
    else:
        header = read_header(flat) or Header(fingerprint, "ffn_input", 0, kind)
        for name in (*Files.names(header), SOURCES):
            os.link(flat / name, target / name)
        Files(target, replace(header, index=kind)).commit()
        with Datastore.open(target) as store:
            for count in heads:
                store.prepare(count, progress=True)
    took = {"build_seconds": round(time.perf_counter() - began, 1), "build_peak_gib": peak.stop()}
    took["index_mib"] = round(sum(file.stat().st_size for file in target.glob("index-*")) / 2**20)
    took["keys_mib"] = round(size * SHAPE["hidden_size"] * 4 / 2**20)
    (target / ABOUT).write_text(json.dumps(took), encoding="utf-8")


def first_use(folder: Path, kind: str, size: int, fingerprint: str) -> None:
    """Print the time of opening and of the first search in this new process."""
    question = np.load(folder / f"states-{fingerprint}.npz")["questions"][:1]
    began, before = time.perf_counter(), own_memory()
    with Datastore.open(place(folder, kind, size), read_only=True) as store:
        store.prepare(1)
        opened = time.perf_counter()
        store.nearest(question, K)
        found = time.perf_counter()
    took = {"open_seconds": opened - began, "first_search_seconds": found - opened}
    print(
        json.dumps(
            {name: round(value, 3) for name, value in took.items()} | {"open_mib": (own_memory() - before) >> 10}
        )
    )


def apart(args: argparse.Namespace, task: str, kind: str, size: int, fingerprint: str, threads: int) -> str:
    """Run `make` or `first_use` in a separate process; return the last line that it prints."""
    command = [sys.executable, __file__, "--task", task, kind, str(size), fingerprint, "--folder", str(args.folder)]
    command += ["--heads", *map(str, args.heads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def datastores(args: argparse.Namespace, fingerprint: str) -> dict[tuple[int, str], dict[str, Any]]:
    """Build the missing datastores; return the measurements of each."""
    about = {}
    for size in sorted(args.sizes):
        for kind in sorted({*args.kinds, "flat"}, key=KINDS.index):
            target, wanted = place(args.folder, kind, size), {"fingerprint": fingerprint, "entries": size}
            header = read_header(target)
            there = header is not None and {name: getattr(header, name) for name in wanted} == wanted
            indexed = kind == "flat" or (header and {str(count) for count in args.heads} <= set(header.indexes))
            if not there or not indexed or not (target / ABOUT).exists():
                print(f"building {target.name}", file=sys.stderr)
                apart(args, "make", kind, size, fingerprint, args.build_threads)
            about[size, kind] = json.loads((target / ABOUT).read_text(encoding="utf-8"))
    return about


def searched(
    stores: dict[str, Datastore], questions: dict[str, NDArray[np.float32]], heads: int
) -> dict[str, dict[str, float]]:
    """Recall of the K nearest against "flat", and the time of a search for one state and for eight."""
    results: dict[str, dict[str, float]] = {kind: {} for kind in stores}
    for name, states in questions.items():
        exact: list[set[tuple[int, int, int]]] = []
        for kind, store in stores.items():  # flat is the first
            for rows, count in ((1, SINGLE), (ROWS[-1], len(states))):
                times, found = [], []
                for start in range(0, count, rows):
                    batch = states[start : start + rows]
                    began = time.perf_counter()
                    near = store.nearest(batch, K, heads)
                    times.append((time.perf_counter() - began) * 1e3)
                    found += [entries_of(near, row) for row in range(len(batch))]
                results[kind][f"{name}_search_ms_{rows}"] = round(statistics.median(times), 2)
            exact = exact or found
            shares = [len(f & e) / len(e) for f, e in zip(found, exact, strict=True)]
            results[kind][f"{name}_recall"] = round(statistics.mean(shares), 4)
    return results


def entries_of(near: Neighbours, row: int) -> set[tuple[int, int, int]]:
    """Head, source and position of the results for a row."""
    return {
        (head, int(source), int(position))
        for head, pairs in enumerate(zip(near.sources[row], near.positions[row], strict=True))
        for source, position in zip(*pairs, strict=True)
    }


def decoders(
    engine: Engine, stores: dict[str, Datastore], rows: int, new_tokens: int, heads: int
) -> Mapping[str, Runner]:
    """Functions that decode a batch plainly and with each datastore; their times exclude the prefill."""
    backbone, prompts, rng = engine._backbone, engine._prompts, random.Random(rows)
    ids = [[rng.randrange(FIRST_TOKEN, FIRST_TOKEN + DIFFERENT) for _ in range(PROMPT_TOKENS)] for _ in range(rows)]
    filled = prefill(backbone, ids, 0)

    def decoded(rtd: Rtd | None) -> tuple[float, float]:
        batch = [Row(Sampling(), new_tokens, batch=rtd) for _ in range(rows)]
        start = replace(filled, kv_cache=copy.deepcopy(filled.kv_cache))
        began, worked = time.perf_counter(), time.process_time()
        decode(backbone, start, batch, prompts.tokenizer)
        moved = [references(row, prompts.pieces, prompts.decode, prompts.decode(row.tokens)) for row in batch]
        took, work = time.perf_counter() - began, time.process_time() - worked
        assert all(len(row.tokens) == new_tokens for row in batch)
        assert rtd is None or all(len(tokens) == new_tokens for tokens in moved)
        return took / new_tokens, work / new_tokens

    steered = {kind: Rtd(store, k=K, weight=WEIGHT, gate=None, heads=heads) for kind, store in stores.items()}
    return {PLAIN: partial(decoded, None)} | {kind: partial(decoded, rtd) for kind, rtd in steered.items()}


def measured(runners: Mapping[str, Runner], repeat: int, title: str) -> dict[str, dict[str, Any]]:
    """Median time per token, and its ratio to plain decoding in the same repetition: median, least and most."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}
    for turn in tqdm(range(repeat + 1), desc=title):
        for name in random.sample(list(runners), len(runners)):
            took = runners[name]()
            if turn:  # the first one is a warm-up
                times[name].append(took)
    results = {}
    for name, own in times.items():
        clock, cpu = ([mine[n] / base[n] for mine, base in zip(own, times[PLAIN], strict=True)] for n in (0, 1))
        results[name] = {
            "ratio": round(statistics.median(clock), 3),
            "range": [round(min(clock), 3), round(max(clock), 3)],
            "cpu_ratio": round(statistics.median(cpu), 3),
            "milliseconds": round(statistics.median(took for took, _ in own) * 1e3, 1),
        }
    return results


def show(results: list[dict[str, Any]]) -> None:
    names = ["entries", "index", "heads", "1 row", "8 rows", "recall, other text", "recall, like its own"]
    print("| " + " | ".join([*names, "build s", "index MiB", "open s"]) + " |")
    print("|---" * (len(names) + 3) + "|")
    for row in results:
        cells = [f"{row['entries']:,}", row["index"], str(row["heads"])]
        cells += [f"{row[f'rows_{rows}']['ratio']:.2f}" for rows in ROWS]
        cells += [f"{row[f'{states}_recall']:.2f}" for states in ("other_text", "like_its_own")]
        cells += [f"{row['build_seconds']:.0f}", f"{row['index_mib']:,}", f"{row['open_seconds']:.2f}"]
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parents[1] / "runs" / "rtd-overhead")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--heads", type=int, nargs="+", default=[1], help="each is measured; an index per head")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--build-threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--build-only", action="store_true")
    parser.add_argument("--out", type=Path, help="for the JSON, such as benchmarks/results/rtd-overhead.json")
    parser.add_argument("--task", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        task, kind, size, fingerprint = args.task
        if task == "make":
            make(args.folder, kind, int(size), fingerprint, args.heads)
        else:
            first_use(args.folder, kind, int(size), fingerprint)
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    before, engine = os.getloadavg()[0], build(args.new_tokens)
    file = args.folder / f"states-{engine.fingerprint}.npz"
    if not file.exists():
        states(engine, file)
    about = datastores(args, engine.fingerprint)
    if args.build_only:
        return
    faiss.omp_set_num_threads(args.threads)
    known, results, plain = np.load(file), [], {}
    like = next(entries(known["keys"], known["tokens"], AT_ONCE, seed=2)).keys[-QUESTIONS:]
    questions = {"other_text": known["questions"], "like_its_own": like}
    for size in sorted(args.sizes):
        kinds = sorted({*args.kinds, "flat"}, key=KINDS.index)
        opened = {kind: json.loads(apart(args, "open", kind, size, engine.fingerprint, args.threads)) for kind in kinds}
        stores = {kind: Datastore.open(place(args.folder, kind, size), read_only=True) for kind in kinds}
        for heads in args.heads:
            found = searched(stores, questions, heads)
            batches = {}
            for rows in ROWS:
                runners = decoders(engine, stores, rows, args.new_tokens, heads)
                batches[rows] = measured(runners, args.repeat, f"{size:,} entries, {heads} heads, {rows} rows")
                plain[f"{size} entries, {heads} heads, {rows} rows"] = batches[rows][PLAIN]["milliseconds"]
            for kind in stores:
                row = {"entries": size, "index": kind, "heads": heads}
                row |= {f"rows_{rows}": batch[kind] for rows, batch in batches.items()}
                results.append(row | found[kind] | about[size, kind] | opened[kind])
            show(results)
        for store in stores.values():
            store.close()
    record = {
        "benchmark": "rtd-overhead",
        "model": f"qwen2, random weights: {SHAPE}",
        "keys": f"{TEXTS * TEXT_TOKENS} states of the model (ffn_input, texts of {TEXT_TOKENS} tokens of {DIFFERENT}, "
        f"odds 1/n); the others a + u (b - a) + noise, a and b two of them, u uniform in 0 to {TOWARDS}, noise normal, "
        f"{NOISE} of each dimension's deviation",
        "k": K,
        "weight": WEIGHT,
        "gate": None,
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": args.new_tokens,
        "repetitions": args.repeat,
        "target": TARGET,
        "plain_milliseconds_per_token": plain,
        "results": results,
        "dtype": "float32",
        "load_average": {"before": before, "after": os.getloadavg()[0]},  # of the last minute; before: 0 if quiet
        **provenance(torch.device("cpu")),
    }
    record["versions"] |= {"faiss": faiss.__version__, "numpy": np.__version__}
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
