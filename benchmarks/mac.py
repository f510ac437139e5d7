"""What answers gain from a MAC bank; baselines, controls and costs. With tiny and invented pages, or with SQuAD-Seq.

    python benchmarks/mac.py --mac FOLDER --out runs/mac              # FOLDER of `memograft train mac`
    python benchmarks/mac.py --mac FOLDER --out runs/mac --sections retention costs
    python benchmarks/mac.py --mac FOLDER --out runs/tune --split tune   # settings are chosen here
    python benchmarks/mac.py --mac FOLDER --out runs/squad --model smollm2 --data squad/test.jsonl --sentences \
        --bank 1665 --questions 100 --seeds 1 --sections quality

The facts are in no page that tiny or the MAC was trained on: the set "unseen" of the bundled questions and, where these
have too few pages, further ones made in the same way with held-out names. For each seed, some questions are drawn, and
the bank and the stores have the pages of just these.

    quality     no page, retrieval, the bank, and both; with banks that cannot help as controls
    groups      16 modulations at a time instead of all at once, and what that saves
    bounded     the bank reduced to a half and a quarter of its modulations
    retention   the same questions before and after many more pages were added, and of a model that is fine-tuned on
                them instead
    costs       time and bytes of a page, and of a question for banks of several sizes, beside the search in a store

An answer is right if it contains the value that is asked for. Exact match and F1 compare it with that value and with
the whole sentence in which tiny gives it, whichever is nearer. Intervals (95 %) are over the questions of all seeds; a
question that several seeds draw is one. Results are stored for each section, seed and way: an interrupted run goes on,
and another MAC is compared with the same baselines. Prints tables and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from amortized.costs import GROUP, aggregation_bytes, costs, show_costs
from amortized.drawn import Drawn, Rows, pages, squad
from amortized.online import fine_tuned
from tqdm import tqdm

from memograft import Document, Engine, FastMem, Mac, MacBank
from memograft.evaluation.items import SPLITS
from memograft.evaluation.metrics import interval
from memograft.evaluation.provenance import provenance
from memograft.memory.mac.folder import about

Ways = dict[str, Callable[[], Rows]]  # name -> asks all questions

KEPT = (0.5, 0.25)  # shares of the modulations
BASELINES = ("no document", "BM25 top-1", "BM25 top-5", "vector store top-1", "own pages", "FastMem + BM25 top-1")
# Paired differences, beside those to the first way of a section.
AGAINST = {
    "MAC": ("BM25 top-1", "MAC, unrelated bank", "MAC, shuffled bank"),
    "MAC + BM25 top-1": ("BM25 top-1",),
    "MAC always + BM25 top-1": ("BM25 top-1",),
    "MAC + vector store top-1": ("vector store top-1",),
    "MAC + FastMem + BM25 top-1": ("FastMem + BM25 top-1",),
    "fine-tuned on all": ("fine-tuned on the first",),
}


def quality(drawn: Drawn, _: argparse.Namespace) -> Ways:
    def memory(**options: Any) -> Mac:
        return Mac(str(drawn.bank.path), **options)

    def unrelated() -> Rows:
        return drawn.ask(Mac(str(drawn.added("unrelated", drawn.others[: len(drawn.documents)]).path)))

    def shuffled() -> Rows:
        # Attention sees the bank as a set of tokens: exchanging whole tokens among documents would change nothing.
        # So every number of a token changes places with that of another document, on its own.
        tokens = drawn.bank.modulations()
        order = torch.rand(tokens.shape, generator=drawn.chance).argsort(0)
        return drawn.ask(Mac(str(drawn.written("shuffled", drawn.own, tokens.gather(0, order)).path)))

    return {
        "no document": drawn.ask,
        "BM25 top-1": lambda: drawn.ask(find=drawn.searched("text", 1)),
        "BM25 top-5": lambda: drawn.ask(find=drawn.searched("text", 5)),
        "vector store top-1": lambda: drawn.ask(find=drawn.searched("vector", 1)),
        "own pages": lambda: drawn.ask(find=lambda item: item.documents),
        "MAC": lambda: drawn.ask(memory()),
        "MAC, unrelated bank": unrelated,
        "MAC, shuffled bank": shuffled,
        "MAC + BM25 top-1": lambda: drawn.ask(memory(), drawn.searched("text", 1)),
        "MAC always + BM25 top-1": lambda: drawn.ask(memory(relevance=None), drawn.searched("text", 1)),
        "MAC + vector store top-1": lambda: drawn.ask(memory(), drawn.searched("vector", 1)),
        "FastMem + BM25 top-1": lambda: drawn.ask(FastMem(), drawn.searched("text", 1)),
        "MAC + FastMem + BM25 top-1": lambda: drawn.ask(memory(memory=FastMem()), drawn.searched("text", 1)),
    }


def groups(drawn: Drawn, _: argparse.Namespace) -> Ways:
    return {
        "all at once": lambda: drawn.ask(Mac(str(drawn.bank.path))),
        f"groups of {GROUP}": lambda: drawn.ask(Mac(str(drawn.bank.path), group=GROUP)),
    }


def bounded(drawn: Drawn, _: argparse.Namespace) -> Ways:
    def merged(share: float, name: str) -> MacBank:
        bank = drawn.written(name, drawn.own, drawn.bank.modulations())
        bank.merge(most(share))
        return bank

    def dropped(share: float, name: str) -> MacBank:
        kept, own = drawn_at_random()[: most(share)], drawn.own
        return drawn.written(name, [own[n] for n in kept], drawn.bank.modulations()[kept])

    def averaged(share: float, name: str) -> MacBank:
        parts, own = torch.tensor(drawn_at_random()).tensor_split(most(share)), drawn.own
        names = [{id: text for n in part.tolist() for id, text in own[n].items()} for part in parts]
        tokens = drawn.bank.modulations().float()
        return drawn.written(name, names, torch.stack([tokens[part].mean(0) for part in parts]))

    def most(share: float) -> int:
        return max(1, round(share * len(drawn.own)))

    def drawn_at_random() -> list[int]:
        return torch.randperm(len(drawn.own), generator=drawn.chance).tolist()

    ways: Ways = {"whole bank": lambda: drawn.ask(Mac(str(drawn.bank.path)))}
    for share in KEPT:
        for how, cut in (("merged", merged), ("dropped at random", dropped), ("averaged at random", averaged)):
            name = f"{how} to {share:.0%}"
            ways[name] = lambda cut=cut, share=share, name=name: drawn.ask(Mac(str(cut(share, name).path)))
    return ways


def retention(drawn: Drawn, args: argparse.Namespace) -> Ways:
    def later() -> Rows:
        drawn.bank.add(drawn.engine, drawn.others[: args.more], progress=False)
        return drawn.ask(Mac(str(drawn.bank.path)))

    def tuned(documents: Sequence[Document]) -> Rows:
        with fine_tuned(args.model, documents, args.learning_rate) as engine:
            return drawn.ask(engine=engine)

    return {
        "the first documents": lambda: drawn.ask(Mac(str(drawn.bank.path))),
        "with the others": later,
        "no document": drawn.ask,
        "fine-tuned on the first": lambda: tuned(drawn.documents),
        "fine-tuned on all": lambda: tuned([*drawn.documents, *drawn.others[: args.more]]),
    }


def summary(ways: Mapping[str, Rows]) -> dict[str, dict[str, Any]]:
    """The means of each way with intervals, and paired differences; every way has rows of the same questions."""
    first, results = next(iter(ways)), {}
    for name, rows in ways.items():
        cell: dict[str, Any] = {"n": len(rows)}
        for measure in ("right", "em", "f1"):
            values = np.array([float(row[measure]) for row in rows])
            label = "accuracy" if measure == "right" else measure
            cell |= {label: values.mean(), f"{label}_interval": interval(values, [row["id"] for row in rows])}
        cell |= {"unfinished": sum(row["unfinished"] for row in rows), "found": sum(row["found"] for row in rows)}
        bases = [other for other in (first, *AGAINST.get(name, ())) if other != name and other in ways]
        cell["minus"] = {other: difference(rows, ways[other]) for other in bases}
        results[name] = cell
    return results


def difference(rows: Rows, others: Rows) -> dict[str, Any]:
    """Of the accuracies, and their ratio; the ratio's interval takes the other accuracy as given."""
    if [row["id"] for row in rows] != [row["id"] for row in others]:
        raise ValueError("a paired difference needs the same questions in the same order")
    change = np.array([float(a["right"]) - float(b["right"]) for a, b in zip(rows, others, strict=True)])
    bounds, base = interval(change, [row["id"] for row in rows]), statistics.mean(row["right"] for row in others)
    found: dict[str, Any] = {"difference": change.mean(), "interval": bounds}
    if base:
        found |= {"ratio": 1 + change.mean() / base, "ratio_interval": [1 + bound / base for bound in bounds]}
    return found


def show(section: str, results: Mapping[str, Any]) -> None:
    """Print a section's table."""
    if section == "costs":
        show_costs(results)
        return
    print(f"\n| {section} | n | right | 95 % | exact | F1 | not ended | page found | difference to |\n{'|---' * 9}|")
    for name, cell in results["ways"].items():
        low, high = cell["accuracy_interval"]
        minus = "; ".join(
            f"{other}: {d['difference']:+.3f} [{d['interval'][0]:+.3f}, {d['interval'][1]:+.3f}]"
            + (f", ratio {d['ratio']:.3f}" if section != "quality" and "ratio" in d else "")
            for other, d in cell["minus"].items()
        )
        print(
            f"| {name} | {cell['n']} | {cell['accuracy']:.3f} | {low:.3f} to {high:.3f} | {cell['em']:.3f} | "
            f"{cell['f1']:.3f} | {cell['unfinished']} | {cell['found']} | {minus} |"
        )
    for count, sizes in results.get("aggregation_bytes", {}).items():
        print(f"Numbers of a block, {count} modulations, groups / all at once: {sizes['ratio']:.4f}")
    print(f"Drawn: {results['drawn']}; {results.get('note', 'all that was asked for')}")


ASKED: dict[str, Callable[[Drawn, argparse.Namespace], Ways]] = {
    "quality": quality,
    "groups": groups,
    "bounded": bounded,
    "retention": retention,
}
SETTINGS = ("model", "split", "bank", "questions", "first", "more", "learning_rate", "sentences")


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What results depend on beside section, seed and way."""
    return {"mac": about(args.mac).id} | {name: getattr(args, name) for name in SETTINGS}


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Section -> its results. What is stored is not measured again."""
    settings = settings_of(args)
    items = squad(args.data) if args.data else pages(args.split, args.bank + args.first + args.more)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "rows.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    without = {name: value for name, value in settings.items() if name not in ("mac", "sentences")}
    known = {tuple(line["part"]): line["result"] for line in lines if line["settings"] in (settings, without)}
    results: dict[str, Any] = {}
    with Engine.from_pretrained(args.model) as engine, file.open("a") as sink, tempfile.TemporaryDirectory() as folder:

        def stored(part: tuple[Any, ...], measure: Callable[[], Any]) -> Any:
            if part not in known:
                known[part] = measure()
                own = settings if part[-1] not in BASELINES else without
                sink.write(json.dumps({"settings": own, "part": part, "result": known[part]}) + "\n")
                sink.flush()
            return known[part]

        def drawn_for(section: str, seed: int) -> Drawn:
            most = args.first if section == "retention" else args.bank
            place = Path(folder) / f"{section}-{seed}"
            return Drawn(engine, args.mac, items, seed, most, args.questions, place, args.sentences)

        for section in args.sections:
            if section == "costs":
                part = (section, args.pool, *args.sizes)
                results[section] = stored(part, lambda: costs(drawn_for("costs", 0), args.sizes, args.pool))
                continue
            ways: dict[str, Rows] = {}
            sizes: list[dict[str, int]] = []
            for seed in range(args.seeds):
                drawn = drawn_for(section, seed)
                sizes.append({"documents": len(drawn.documents), "questions": len(drawn.items)})
                if section == "retention":
                    sizes[-1]["others"] = len(drawn.others[: args.more])
                for way, ask in tqdm(ASKED[section](drawn, args).items(), desc=f"{section}, seed {seed}"):
                    ways.setdefault(way, []).extend(stored((section, seed, way), ask))
            results[section] = {"ways": summary(ways), "drawn": sizes}
            if any(size["questions"] < args.questions for size in sizes):
                results[section]["note"] = f"the drawn documents have fewer than {args.questions} questions"
        if "groups" in results:
            mac = about(args.mac)
            counts = (args.bank, *args.sizes)
            computed = {count: aggregation_bytes(count, mac.tokens, mac.width) for count in counts}
            results["groups"]["aggregation_bytes"] = computed
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mac", type=Path, required=True, help="a trained MAC of the model")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--data", type=Path, help="test.jsonl of SQuAD-Seq instead of invented pages")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of fine-tuning, in retention")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sections", nargs="+", choices=(*ASKED, "costs"), default=(*ASKED, "costs"))
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--bank", type=int, default=100, help="documents")
    parser.add_argument("--sentences", action="store_true", help="banks have a modulation for each sentence of a page")
    parser.add_argument("--questions", type=int, default=150, help="of each seed, at most")
    parser.add_argument("--first", type=int, default=200, help="documents before the questions, in retention")
    parser.add_argument("--more", type=int, default=1400, help="documents after them")
    parser.add_argument("--sizes", type=int, nargs="+", default=(100, 1000, 10000), help="of banks, in costs")
    parser.add_argument("--pool", type=int, default=1000, help="documents of banks and stores, in costs")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = measured(args)
    for section, results in found.items():
        show(section, results)
    data = f"world, {args.split}, unseen" if args.data is None else f"SQuAD-Seq, {args.data.stem}"
    record = {"benchmark": "mac", "data": data} | settings_of(args)
    record |= {"seeds": args.seeds, "sizes": args.sizes, "training": about(args.mac).training}
    print(json.dumps(record | {"results": found} | provenance(torch.device("cpu"))))


if __name__ == "__main__":
    main()
