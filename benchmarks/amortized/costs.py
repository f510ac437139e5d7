"""What a bank costs in time and bytes, beside stores."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from amortized.drawn import Drawn, filled
from memograft import LexicalEmbedder, Mac, MacBank, Memory, Request, Sampling

__all__ = ["GROUP", "aggregation_bytes", "costs", "show_costs"]

GROUP = 16
NOISE = 0.01  # of repeated modulations, in units of their standard deviation
TURNS = 5


def costs(drawn: Drawn, sizes: Sequence[int], most: int) -> dict[str, Any]:
    """Medians of interleaved turns, each with its own question. The seconds of a question end with its first token.

    Banks and stores have `most` documents; larger banks repeat their modulations.
    """
    pool, own = [*drawn.documents, *drawn.others][:most], drawn.documents
    adding = {
        "MAC bank": lambda turn: drawn.added(f"added-{turn}", own),
        "BM25 store": lambda turn: filled(None, drawn.folder / f"text-{turn}", own).close(),
        "vector store": lambda turn: filled(LexicalEmbedder(), drawn.folder / f"vectors-{turn}", own).close(),
    }
    documents = {name: {of: s / len(own) for of, s in found.items()} for name, found in timed(adding).items()}
    bank = MacBank(drawn.folder / "added-0")
    documents["MAC bank"] |= {"bytes": bank.nbytes / len(bank)}
    for name, stored in (("MAC bank", "added-0"), ("BM25 store", "text-0"), ("vector store", "vectors-0")):
        files = [f for f in (drawn.folder / stored).rglob("*") if f.is_file() and f.parent.name != "mac"]
        documents[name]["bytes_on_disk"] = sum(f.stat().st_size for f in files) / len(own)
    documents["text"] = {"bytes": statistics.mean(len(d.text.encode()) for d in own)}

    def question(turn: int) -> str:
        return drawn.items[turn % len(drawn.items)].question

    def answer(turn: int, memory: Memory | None = None) -> object:
        return drawn.engine.answer(Request(question(turn), memory=memory, sampling=Sampling(1)))

    asking: dict[str, Callable[[int], object]] = {"no document": answer}
    first = drawn.added("pool", pool)
    names, tokens = first.ids, first.modulations()
    for size in sizes:
        repeated = tokens[torch.arange(size) % len(tokens)].float()
        repeated[len(tokens) :] += (
            NOISE * tokens.float().std() * torch.randn(repeated[len(tokens) :].shape, generator=drawn.chance)
        )
        owners = [{f"{names[n % len(names)]}-{n}": ""} for n in range(size)]
        path = str(drawn.written(f"size-{size}", owners, repeated).path)
        memory, grouped = Mac(path), Mac(path, group=GROUP)
        asking[f"MAC, {size} modulations"] = lambda turn, memory=memory: answer(turn, memory)
        asking[f"MAC, {size}, groups of {GROUP}"] = lambda turn, memory=grouped: answer(turn, memory)
        asking[f"opening a bank of {size}"] = lambda turn, path=path: MacBank(path)
    for size in (size for size in sizes if size <= len(pool)):
        for name, embedder, mode in (("BM25", None, "text"), ("vector store", LexicalEmbedder(), "vector")):
            store = filled(embedder, drawn.folder / f"{mode}-of-{size}", pool[:size])
            asking[f"{name} search, {size} documents"] = lambda turn, store=store, mode=mode: store.search(
                question(turn), 1, mode=mode
            )
    return {"documents": documents, "questions": timed(asking), "real_modulations": len(tokens)}


def timed(parts: Mapping[str, Callable[[int], object]]) -> dict[str, dict[str, float]]:
    """Median seconds of each part, and CPU seconds; the first turn is a warm-up.

    Each turn has another order, because what follows a large bank finds the processor's caches cold.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in parts}
    for turn in range(TURNS + 1):
        for name, part in random.Random(turn).sample(list(parts.items()), len(parts)):
            began, worked = time.perf_counter(), time.process_time()
            part(turn)
            found[name].append((time.perf_counter() - began, time.process_time() - worked))
    medians = {name: np.median(turns[1:], axis=0).tolist() for name, turns in found.items()}
    return {name: {"seconds": wall, "cpu_seconds": cpu} for name, (wall, cpu) in medians.items()}


def aggregation_bytes(documents: int, tokens: int, width: int, heads: int = 8) -> dict[str, float]:
    """Computed: float32 numbers that a block needs for one question beside the bank, at once and in groups.

    That is the bank after its norm; in groups the group's, its scores, and the sums over the groups before.
    """
    rows, whole = heads * tokens, 4 * documents * tokens * width
    apart = 4 * min(documents, GROUP) * tokens * (width + rows) + 4 * rows * (width + 2)
    return {"all_at_once": whole, "groups": apart, "ratio": apart / whole}


def show_costs(found: Mapping[str, Any]) -> None:
    """Print tables."""
    print("\n| a document | ms | CPU ms | bytes | bytes on disk |\n|---|---|---|---|---|")
    for name, row in found["documents"].items():
        numbers = [1000 * row[key] if key in row else None for key in ("seconds", "cpu_seconds")]
        numbers += [row.get("bytes"), row.get("bytes_on_disk")]
        print(f"| {name} | " + " | ".join("" if n is None else f"{n:.1f}" for n in numbers) + " |")
    print("\n| a question | ms | CPU ms |\n|---|---|---|")
    for name, row in found["questions"].items():
        print(f"| {name} | {1000 * row['seconds']:.2f} | {1000 * row['cpu_seconds']:.2f} |")
