"""The accuracy of relevance and of the detection of disagreements, and their cost.

    python benchmarks/relevance.py --model smollm2 --data PATH/nqswap-dev.jsonl.xz
    python benchmarks/relevance.py --model tiny --world

Uses a public set that `memograft eval` reads or, with `--world`, the bundled questions. Pages are judged as for an
answer, and nothing is memorized. For a public set, the prompts contain: the question's own page alone; the same with
another answer; another question's page alone; the own page among four others. For disagreements they contain: the own
page and its version with another answer; the own page twice; the own page and another question's page. In the last two,
both pages are treated as relevant. For the bundled questions, they contain pages with and without an answer. The area
under the curve (AUC) compares own pages with others in the same kind of prompt. The cost is CPU time divided by that of
the prefill. Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from memograft import Document, FastMem
from memograft.evaluation.items import Item, world
from memograft.evaluation.provenance import provenance
from memograft.evaluation.readers import read
from memograft.memory.base import Model, Wanted
from memograft.memory.fastmem.relevance import AUTO
from memograft.memory.fastmem.select import Selection, select
from memograft.memory.handle import fingerprint
from memograft.model.backbone import Backbone
from memograft.model.loading import load
from memograft.model.prefill import prefill
from memograft.prompt.builder import PromptBuilder

ALONE = {"agrees": "own, alone", "contradicts": "swapped, alone", "irrelevant": "other, alone"}
ALL = -1.0  # a threshold below every relevance


class Judge:
    """A model that judges pages, and the CPU seconds that it has used."""

    def __init__(self, name: str, **kwargs: Any) -> None:
        model, tokenizer = load(name, **kwargs)
        backbone, self.builder = Backbone.of(model), PromptBuilder(tokenizer)
        self.model = Model(backbone, self.builder, 0, fingerprint(backbone))
        self.costs: dict[int, list[float]] = defaultdict(list)

    def __call__(self, question: str, documents: Sequence[Document], threshold: float = AUTO) -> Selection:
        prompt = self.builder.build([{"role": "user", "content": question}], documents)
        start = time.process_time()
        filled = prefill(self.model.backbone, [prompt.ids], 0)
        middle = time.process_time()
        (selection,) = select(self.model, [Wanted(FastMem(relevance=threshold), prompt, 0)], filled)
        self.costs[len(documents)].append((time.process_time() - middle) / (middle - start))
        return selection


def public(judge: Judge, items: Iterable[Item], pairs: int) -> tuple[dict[str, list[float]], dict[str, list[bool]]]:
    """Relevances for each kind of page, and whether pairs were reported as disagreeing (`pairs` of some kinds)."""
    relevance: dict[str, list[float]] = defaultdict(list)
    disagree: dict[str, list[bool]] = defaultdict(list)
    own: dict[str, Document] = {}
    for item in tqdm(list(items)):
        if item.set in ALONE:
            relevance[ALONE[item.set]] += judge(item.question, item.documents).relevance
        if item.set == "agrees" and len(own) < pairs:
            own[item.group] = item.documents[0]
            disagree["the same page twice"].append(bool(judge(item.question, [*item.documents] * 2, ALL).disagree))
        if item.set == "irrelevant" and item.group in own:
            pair = [own[item.group], *item.documents]
            disagree["another question's page beside it"].append(bool(judge(item.question, pair, ALL).disagree))
        if item.set == "disagree":
            disagree["another answer in it"].append(bool(judge(item.question, item.documents).disagree))
        if item.set == "one of five":
            for document, found in zip(item.documents, judge(item.question, item.documents).relevance, strict=True):
                relevance[f"{'own' if _holds(document, item) else 'other'}, one of five"].append(found)
    return relevance, disagree


def bundled(judge: Judge, items: Iterable[Item]) -> tuple[dict[str, list[float]], dict[str, list[bool]]]:
    """The same for the bundled questions; a question is skipped if two of its pages have the answer by chance."""
    relevance: dict[str, list[float]] = defaultdict(list)
    disagree: dict[str, list[bool]] = defaultdict(list)
    for item in tqdm([item for item in items if item.set != "beside"]):
        holds = [item.set != "elsewhere" and _holds(d, item) for d in item.documents]
        rivals = item.set in ("disagree", "repeats")
        if sum(holds) > 1 and not rivals:
            continue
        selection = judge(item.question, item.documents)
        for held, found in zip(holds, selection.relevance, strict=True):
            relevance["own" if held else "other"].append(found)
        if rivals:
            disagree[item.set].append(bool(selection.disagree))
    return relevance, disagree


def _holds(document: Document, item: Item) -> bool:
    return any(answer in document.text for answer in (*item.answers, item.other) if answer)


def summary(relevance: dict[str, list[float]], disagree: dict[str, list[bool]]) -> dict[str, Any]:
    """The numbers of the table."""
    pages = {
        kind: {
            "n": len(found),
            "kept": sum(r >= AUTO for r in found) / len(found),
            "quartiles": [round(q, 3) for q in statistics.quantiles(found, n=4)],
        }
        for kind, found in relevance.items()
    }
    for kind, found in relevance.items():
        others = relevance.get("other" + kind.removeprefix("own").removeprefix("swapped"), [])
        if others and not kind.startswith("other"):
            right = [True] * len(found) + [False] * len(others)
            pages[kind]["auc"] = round(float(roc_auc_score(right, [*found, *others])), 4)
    pairs = {kind: {"n": len(found), "named": sum(found) / len(found)} for kind, found in disagree.items()}
    return {"pages": pages, "pairs": pairs}


def show(results: dict[str, Any], costs: dict[int, float]) -> None:
    """Print tables."""
    print("| pages | n | kept | quartiles | AUC |\n|---|---|---|---|---|")
    for kind, row in sorted(results["pages"].items()):
        quartiles = " / ".join(f"{q:.2f}" for q in row["quartiles"])
        print(f"| {kind} | {row['n']} | {row['kept']:.3f} | {quartiles} | {row.get('auc', '')} |")
    print("\n| two pages | n | said to disagree |\n|---|---|---|")
    for kind, row in results["pairs"].items():
        print(f"| {kind} | {row['n']} | {row['named']:.3f} |")
    print("\n| documents | judging, prefill = 1 |\n|---|---|")
    for documents, cost in costs.items():
        print(f"| {documents} | {cost:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="an id, a folder, or a name that Engine takes")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", help="a public set: .json or .jsonl, packed or not")
    source.add_argument("--world", action="store_true", help="the bundled questions")
    parser.add_argument("--split", choices=("test", "tune"), default="test")
    parser.add_argument("--n", type=int, default=300, help="questions of each set")
    parser.add_argument("--pairs", type=int, default=100, help="of the same page twice, and of two questions' pages")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    args = parser.parse_args()
    judge = Judge(args.model, **({"dtype": getattr(torch, args.dtype)} if args.dtype else {}))
    if args.world:
        found = bundled(judge, world(args.split, args.n))
    else:
        contexts = ["agrees", "irrelevant", "one of five"]
        kinds = read(args.data, split=args.split, n=1).items
        contexts += [c for c in ("contradicts", "disagree") if any(item.set == c for item in kinds)]
        found = public(judge, read(args.data, contexts=contexts, split=args.split, n=args.n).items, args.pairs)
    results = summary(*found)
    costs = {n: round(statistics.median(c), 3) for n, c in sorted(judge.costs.items())}
    show(results, costs)
    record = {
        "benchmark": "relevance",
        "model": Path(args.model).name,
        "data": "world" if args.world else Path(args.data).name,
        "split": args.split,
        "questions": args.n,
        "auto": AUTO,
        "results": results,
        "cost": costs,
        "dtype": str(judge.model.backbone.model.dtype).removeprefix("torch."),
        **provenance(judge.model.backbone.device),
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
