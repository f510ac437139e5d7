"""The retrieval quality of the vector store: by words (BM25), by vectors, and by both.

    python benchmarks/search.py FOLDER                            # BM25, the lexical embedder, and both
    python benchmarks/search.py FOLDER --model all-MiniLM-L6-v2   # and a sentence-transformers model

FOLDER is a data set in BEIR's layout, such as SciFact: corpus.jsonl, queries.jsonl and qrels/test.tsv; the first two
may be compressed with xz. A passage is a title and a text, joined by a line break. nDCG@10 and recall@10 are defined
as in BEIR: the gain is the relevance, discounted by log2(rank + 1). The interval is that of the paired differences from
BM25 over the questions. Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import csv
import json
import lzma
import math
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from memograft import Document, LexicalEmbedder, SentenceTransformerEmbedder, VectorStore
from memograft.evaluation.metrics import interval
from memograft.evaluation.provenance import provenance
from memograft.passages.embedders import Embedder
from memograft.passages.vector_store import SearchMode

Judged = dict[str, dict[str, int]]  # question -> passage -> relevance

K = 10


def read(folder: Path) -> tuple[list[Document], dict[str, str], Judged]:
    """(passages, judged questions, relevances)."""
    passages = [Document(f"{p['title']}\n{p['text']}".strip(), str(p["_id"])) for p in rows(folder, "corpus")]
    judged: Judged = defaultdict(dict)
    with (folder / "qrels" / "test.tsv").open(newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            judged[row["query-id"]][row["corpus-id"]] = int(row["score"])
    questions = {str(q["_id"]): q["text"] for q in rows(folder, "queries")}
    return passages, {id: questions[id] for id in judged}, judged


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    packed = folder / f"{name}.jsonl.xz"
    with lzma.open(packed, "rt") if packed.exists() else (folder / f"{name}.jsonl").open() as file:
        return [json.loads(line) for line in file]


def ndcg(found: list[str], judged: dict[str, int]) -> float:
    """nDCG@10 of one ranking."""
    gained = sum(judged.get(id, 0) / math.log2(rank + 1) for rank, id in enumerate(found[:K], start=1))
    best = sorted(judged.values(), reverse=True)[:K]
    return gained / sum(gain / math.log2(rank + 1) for rank, gain in enumerate(best, start=1))


def recall(found: list[str], judged: dict[str, int]) -> float:
    """The share of the relevant passages that are among the first 10."""
    relevant = {id for id, gain in judged.items() if gain > 0}
    return len(relevant & set(found[:K])) / len(relevant)


def measured(store: VectorStore, mode: SearchMode, questions: dict[str, str], judged: Judged) -> dict[str, Any]:
    """The scores of each question, and its milliseconds, including the embedding."""
    started = time.perf_counter()
    found = {id: [hit.document.id for hit in store.search(text, K, mode=mode)] for id, text in questions.items()}
    milliseconds = 1000 * (time.perf_counter() - started) / len(questions)
    return {
        "ndcg": np.array([ndcg(found[id], judged[id]) for id in questions]),
        "recall": float(np.mean([recall(found[id], judged[id]) for id in questions])),
        "milliseconds": round(milliseconds, 2),
    }


def filled(embedder: Embedder | None, passages: list[Document], vectors: Path | None = None) -> VectorStore:
    """A store of all passages; vectors are read from a file if it exists, else written there."""
    store = VectorStore(embedder)
    known = np.load(vectors) if vectors and vectors.exists() else None
    if known is None and embedder is not None:
        steps = tqdm(range(0, len(passages), 256), desc=embedder.fingerprint, leave=False)
        known = np.concatenate([embedder.embed_documents([p.text for p in passages[n : n + 256]]) for n in steps])
        if vectors:
            np.save(vectors, known)
    store.add(passages, known)
    return store


def summary(ways: dict[str, dict[str, Any]], baseline: str) -> list[dict[str, Any]]:
    table = []
    for name, way in ways.items():
        row = {"way": name, "ndcg@10": round(float(way["ndcg"].mean()), 4), "recall@10": round(way["recall"], 4)}
        difference = way["ndcg"] - ways[baseline]["ndcg"]
        if difference.any():
            row["difference"] = [round(float(difference.mean()), 4), *interval(difference)]
        table.append({**row, "milliseconds": way["milliseconds"]})
    return table


def show(table: list[dict[str, Any]]) -> None:
    """Print a table."""
    print(f"| search | nDCG@{K} | recall@{K} | against BM25 (95 %) | ms a question |\n|---|---|---|---|---|")
    for row in table:
        shown = "{:+.3f} ({:+.3f} to {:+.3f})".format(*row["difference"]) if "difference" in row else ""
        print(f"| {row['way']} | {row['ndcg@10']:.3f} | {row['recall@10']:.3f} | {shown} | {row['milliseconds']:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a set in BEIR's layout")
    parser.add_argument("--model", help="a sentence-transformers model, by name or folder")
    parser.add_argument("--name", help="what to call that model in the record; left out, as it was given")
    parser.add_argument("--vectors", type=Path, help="file of that model's vectors: read if it is there, else written")
    args = parser.parse_args()
    passages, questions, judged = read(args.folder)
    name = args.name or args.model
    stores = {"lexical": filled(LexicalEmbedder(), passages)}
    if args.model:
        stores[name] = filled(SentenceTransformerEmbedder(args.model, device="cpu"), passages, args.vectors)
    ways = {"BM25": measured(filled(None, passages), "text", questions, judged)}
    for embedder, store in stores.items():
        ways[embedder] = measured(store, "vector", questions, judged)
        ways[f"hybrid of BM25 and {embedder}"] = measured(store, "hybrid", questions, judged)
    table = summary(ways, "BM25")
    show(table)
    record = {
        "benchmark": "search",
        "data": args.folder.name,
        "passages": len(passages),
        "questions": len(questions),
        "results": table,
        **provenance(torch.device("cpu")),
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
