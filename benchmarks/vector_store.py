"""Vector stores in one process: raw FAISS, Memograft's, Memograft's through LangChain, and langchain_community's FAISS.

    python benchmarks/vector_store.py             # 100,000 x 384, k = 10, single questions

Passages and queries are random unit vectors. Searches use all passages, or the 1 % that a metadata filter selects, with
another filter for each query. The results are compared with an exact search in NumPy. Memograft caches the result of a
filter, so one row uses filters that were not used before. Every repetition runs all stores in turn. The ratios are
medians. Prints tables and, last, one JSON line.

Needs integrations/langchain and langchain-community, which is no longer maintained and is included for comparison.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from langchain_core.embeddings import Embeddings
from langchain_memograft import MemograftVectorStore
from numpy.typing import NDArray
from tqdm import tqdm

from memograft import Document
from memograft.evaluation.provenance import provenance

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # langchain-community warns that it is no longer maintained
    from langchain_community.docstore.in_memory import InMemoryDocstore
    from langchain_community.vectorstores import FAISS

Floats = NDArray[np.float32]
Search = Callable[[Floats, int], list[str]]  # query vector and its number -> ids, best first

GROUPS = 100  # each passage has one group; a filter selects one
AT_ONCE = 10_000


class Given(Embeddings):
    """Is never called: the queries are vectors."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise NotImplementedError

    def embed_query(self, text: str) -> list[float]:
        raise NotImplementedError


def unit_vectors(count: int, dimension: int, seed: int) -> Floats:
    vectors = np.random.default_rng(seed).standard_normal((count, dimension), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def passages(start: int, stop: int) -> list[Document]:
    return [Document(f"passage {n}", str(n), {"n": n, "group": n % GROUPS}) for n in range(start, stop)]


def contestants(vectors: Floats, k: int) -> tuple[dict[str, Search], dict[str, Search]]:
    """Fill the stores; return functions that search all passages, and one group."""
    count, dimension = vectors.shape
    raw = faiss.IndexFlatIP(dimension)
    ours = MemograftVectorStore(Given(), dimension=dimension)
    old = FAISS(Given(), faiss.IndexFlatL2(dimension), InMemoryDocstore(), {})
    for start in tqdm(range(0, count, AT_ONCE), desc="filling", leave=False):
        part = vectors[start : start + AT_ONCE]
        documents = passages(start, start + len(part))
        raw.add(part)
        ours.store.add(documents, part)
        pairs = zip((document.text for document in documents), part, strict=True)
        old.add_embeddings(pairs, [dict(d.metadata) for d in documents], [d.id for d in documents])

    def raw_faiss(question: Floats, _: int) -> list[str]:
        return [str(n) for n in raw.search(question[None], k)[1][0]]

    fresh = itertools.count(1)

    def core(question: Floats, where: dict[str, Any] | None) -> list[str]:
        return [hit.document.id for hit in ours.store.search_by_vector(question, k, where)]

    def of(store: Any, question: Floats, **options: Any) -> list[str]:
        found = store.similarity_search_with_score_by_vector(question, k, **options)
        return [str(document.metadata["n"]) for document, _ in found]

    everything: dict[str, Search] = {
        "raw faiss IndexFlatIP": raw_faiss,
        "memograft.VectorStore": lambda question, _: core(question, None),
        "MemograftVectorStore (LangChain)": lambda question, _: of(ours, question),
        "langchain_community FAISS": lambda question, _: of(old, question),
    }

    def first_time(question: Floats, n: int) -> list[str]:
        return core(question, {"group": {"$in": [n % GROUPS, -next(fresh)]}})  # a filter that was not used before

    filtered: dict[str, Search] = {
        "memograft.VectorStore": lambda question, n: core(question, {"group": n % GROUPS}),
        "memograft.VectorStore, a filter never used before": first_time,
        "MemograftVectorStore (LangChain)": lambda question, n: of(ours, question, filter={"group": n % GROUPS}),
        "langchain_community FAISS": lambda question, n: of(old, question, filter={"group": n % GROUPS}),
        "langchain_community FAISS, fetch_k=all": lambda question, n: of(
            old, question, filter={"group": n % GROUPS}, fetch_k=count
        ),
    }
    return everything, filtered


def exact(vectors: Floats, questions: Floats, k: int, filtered: bool) -> list[list[str]]:
    """The k best passages of each query by NumPy, of all passages or of the query's group."""
    numbers = np.arange(len(vectors))
    answers = []
    for place, question in enumerate(questions):
        among = numbers[numbers % GROUPS == place % GROUPS] if filtered else numbers
        answers.append([str(n) for n in among[np.argsort(-(vectors[among] @ question))[:k]]])
    return answers


def measured(runners: dict[str, Search], questions: Floats, answers: list[list[str]], repeat: int) -> dict[str, Any]:
    """Run every query on every store, in turn: the time, the number of ids returned, and the number of right ones."""
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    found: dict[str, list[list[str]]] = {}
    for turn in tqdm(range(repeat + 1), desc="repetitions"):
        for name, search in runners.items():
            asked = range(min(len(questions), 5 if "fetch_k=all" in name else len(questions)))  # a second a question
            began = time.perf_counter()
            found[name] = [search(questions[place], place) for place in asked]
            if turn:  # the first one is a warm-up
                seconds[name].append((time.perf_counter() - began) / len(asked))
    first = next(iter(runners))
    rows = {}
    for name, times in seconds.items():
        pairs = list(zip(found[name], answers, strict=False))
        rows[name] = {
            "queries_per_second": round(1 / statistics.median(times), 1),
            "ratio": round(statistics.median(base / t for t, base in zip(times, seconds[first], strict=True)), 3),
            "returned": round(statistics.mean(len(ids) for ids, _ in pairs), 2),
            "recall": round(statistics.mean(len(set(ids) & set(best)) / len(best) for ids, best in pairs), 4),
            "exact": all(ids == best for ids, best in pairs),
        }
    return rows


def show(title: str, rows: dict[str, Any], k: int) -> None:
    print(f"\n| {title} | queries/s | {next(iter(rows))} = 1 | returned of {k} | recall | exact top {k} |")
    print("|---|---|---|---|---|---|")
    for name, row in rows.items():
        print(
            f"| {name} | {row['queries_per_second']:.1f} | {row['ratio']:.2f} | {row['returned']:.2f} | "
            f"{row['recall']:.3f} | {'yes' if row['exact'] else 'no'} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--questions", type=int, default=20, help="in a repetition, at most 100: one a group")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="for the JSON, such as benchmarks/results/vector-store.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    vectors = unit_vectors(args.count, args.dimension, seed=0)
    questions = unit_vectors(args.questions, args.dimension, seed=1)
    everything, filtered = contestants(vectors, args.k)
    results = {
        "everything": measured(everything, questions, exact(vectors, questions, args.k, False), args.repeat),
        "filter": measured(filtered, questions, exact(vectors, questions, args.k, True), args.repeat),
    }
    show("everything", results["everything"], args.k)
    show(f"a filter that matches {100 / GROUPS:g} %", results["filter"], args.k)
    names = ("faiss-cpu", "numpy", "langchain-core", "langchain-community")
    record = {
        "benchmark": "vector-store",
        "vectors": f"{args.count} x {args.dimension}, random unit vectors",
        "k": args.k,
        "questions": args.questions,
        "repetitions": args.repeat,
        "results": results,
        **provenance(torch.device("cpu")),
    }
    record["versions"] |= {name: version(name) for name in names}
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
