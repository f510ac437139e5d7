"""What decoding methods gain and cost, alone and with FastMem: NQ-SWAP, SmolLM2.

    python benchmarks/decoding.py NQSWAP --out runs/decoding --tune --n 24     # strengths are chosen here
    python benchmarks/decoding.py NQSWAP --out runs/decoding --n 300 --cad 0.5 --contrast 0.5 --dola high

NQSWAP is nqswap-dev.jsonl.xz. The sets: "contradicts" (the page has a substituted answer, which is right), "agrees"
(the original page), and "irrelevant": the questions and pages of "agrees", while another question's page is memorized.
What does not memorize has the same answers there as in "agrees", and is not asked again.

Some questions are asked together, with each way in turn and in a random order, so that ways have the same load of a
shared machine. Rows are stored in OUT/rows.jsonl: a run that was killed goes on, and a later one may ask more
questions. Prints tables and, last, one JSON line. Intervals (95%) and differences are paired and draw whole questions.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from memograft import Engine, FastMem, Sampling
from memograft.evaluation.cells import Record
from memograft.evaluation.items import Item
from memograft.evaluation.lessons import Lessons
from memograft.evaluation.methods import METHODS, Method
from memograft.evaluation.metrics import details, summary, table
from memograft.evaluation.provenance import provenance
from memograft.evaluation.readers import read
from memograft.evaluation.records import record

SETS = ("contradicts", "agrees", "irrelevant")
STRENGTHS = (0.25, 0.5, 1.0)
LAYERS: tuple[str | tuple[int, ...], ...] = ("high", "low", (15,), (24,))  # one number: static
AGAINST = ("CAD", "FastMem")


def cad(alpha: float, name: str = "CAD") -> Method:
    return replace(METHODS[name], options={"alpha": alpha})


def dola(layers: str | tuple[int, ...], name: str = "DoLa") -> Method:
    return replace(METHODS[name], options={"layers": layers})


def contrast(alpha: float) -> Method:
    return Method(memory=lambda: FastMem(contrast=alpha))


def compared(args: argparse.Namespace) -> dict[str, Method]:
    """The ways that are compared, with the chosen strengths."""
    return {
        "plain": METHODS["plain"],
        "CAD": cad(args.cad),
        "AdaCAD": METHODS["AdaCAD"],
        "DoLa": dola(args.dola),
        "FastMem": METHODS["memorized"],
        "FastMem + CD": contrast(args.contrast),
        "FastMem + adaptive CD": METHODS["memorized, contrast adaptive"],
        "FastMem + CAD": cad(args.cad, "memorized, CAD"),
        "FastMem + AdaCAD": METHODS["memorized, AdaCAD"],
        "FastMem + DoLa": dola(args.dola, "memorized, DoLa"),
    }


def grid() -> dict[str, Method]:
    """The strengths to choose from: "option value" -> way."""
    return {
        "plain": METHODS["plain"],
        **{f"cad {alpha}": cad(alpha) for alpha in STRENGTHS},
        **{f"contrast {alpha}": contrast(alpha) for alpha in STRENGTHS},
        **{f"dola {spelled(layers)}": dola(layers) for layers in LAYERS},
    }


def layers_of(text: str) -> str | tuple[int, ...]:
    """The layers of DoLa from an option."""
    return text if text in ("high", "low") else tuple(int(part) for part in text.split(","))


def spelled(layers: str | tuple[int, ...]) -> str:
    return layers if isinstance(layers, str) else ",".join(map(str, layers))


class Store:
    """Rows in a file. What determines an answer is part of a row's key.

    Args:
        path: the file; an incomplete last line, of a run that was killed, is not used.
        about: of the run, as JSON values.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else ""
        if text and not text.endswith("\n"):
            path.write_text(text := text[: text.rfind("\n") + 1])
        self._about, self._path, self._rows = dict(about), path, dict[tuple[str, ...], Record]()
        for line in map(json.loads, text.splitlines()):
            if line["about"] == self._about:
                self._rows[tuple(line["key"])] = line["row"]

    def get(self, set: str, way: Method, item: Item) -> Record | None:
        return self._rows.get(self._key(set, way, item))

    def add(self, set: str, way: Method, items: Sequence[Item], rows: Sequence[Record]) -> None:
        new = {self._key(set, way, item): row for item, row in zip(items, rows, strict=True)}
        lines = [json.dumps({"about": self._about, "key": key, "row": row}) + "\n" for key, row in new.items()]
        with self._path.open("a") as file:
            file.write("".join(lines))
        self._rows |= new

    @staticmethod
    def _key(set: str, way: Method, item: Item) -> tuple[str, ...]:
        return (set, json.dumps(way.settings(), sort_keys=True), item.id)


def asked(name: str, way: Method) -> tuple[str, Method]:
    """The set and the method that a cell's answers come from."""
    if name != "irrelevant":
        return name, way
    return (name, replace(way, memorizes="another")) if way.memory else ("agrees", way)


def ask(engine: Engine, way: Method, items: Sequence[Item], part: range, tokens: int) -> list[Record]:
    """Ask some of a set's questions together. Times are those of the batch, divided by its questions or tokens."""
    lessons = Lessons(engine, (), items)
    requests = [way.request(engine, items, n, Sampling(tokens), lessons) for n in part]
    wall, cpu = time.perf_counter(), time.process_time()
    answers = engine.answer_batch(requests, return_exceptions=True)
    spent = {"seconds": (time.perf_counter() - wall) / len(part), "cpu": (time.process_time() - cpu) / len(part)}
    said = [answer for answer in answers if not isinstance(answer, Exception)]
    count = sum(answer.usage.completion_tokens for answer in said)
    spent["per_token"] = max((answer.timings.decode for answer in said), default=0.0) / max(count, 1)
    return [record(items[n], answer, True) | spent for n, answer in zip(part, answers, strict=True)]  # type: ignore[return-value]


def run(
    engine: Engine, ways: Mapping[str, Method], by_set: Mapping[str, Sequence[Item]], store: Store, args: Any
) -> None:
    """Ask what is missing, some questions at a time with all ways."""
    chance = random.Random(0)
    parts = list(chunks(max(map(len, by_set.values())), args.batch))
    with tqdm(total=len(parts) * len(by_set) * len(ways), unit="batch") as bar:
        for part in parts:
            for name, items in by_set.items():
                here = range(part.start, min(part.stop, len(items)))
                for way in chance.sample(list(ways.values()), len(ways)):
                    source, method = asked(name, way)
                    if any(store.get(source, method, items[n]) is None for n in here):
                        rows = ask(engine, method, items, here, args.max_new_tokens)
                        store.add(source, method, [items[n] for n in here], rows)
                    bar.update()


def chunks(count: int, size: int) -> Iterator[range]:
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


def collected(
    ways: Mapping[str, Method], by_set: Mapping[str, Sequence[Item]], store: Store
) -> dict[str, dict[str, list[Record]]]:
    """way -> set -> rows."""
    found: dict[str, dict[str, list[Record]]] = {}
    for label, way in ways.items():
        found[label] = {}
        for name, items in by_set.items():
            rows = [store.get(*asked(name, way), item) for item in items]
            found[label][name] = [row for row in rows if row is not None]
    return found


def times(rows: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[str, dict[str, float]]:
    """Of each way: means of the times, and medians of their ratios to plain in the same batch, without "irrelevant"."""
    found = {}
    for label, by_set in rows.items():
        own = [row for name, some in by_set.items() if name != "irrelevant" for row in some]
        base = [row for name, some in rows["plain"].items() if name != "irrelevant" for row in some]
        found[label] = {what: statistics.mean(row[what] for row in own) for what in ("seconds", "cpu", "per_token")}
        for what in ("cpu", "per_token"):
            pairs = zip(own, base, strict=True)
            found[label][f"{what}_ratio"] = statistics.median(row[what] / plain[what] for row, plain in pairs)
    return {label: {what: round(value, 4) for what, value in cell.items()} for label, cell in found.items()}


def chosen(results: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Of each option, the value with the highest mean accuracy over the sets; of equal ones the first."""
    best: dict[str, tuple[float, str]] = {}
    for label, by_set in results.items():
        option, _, value = label.partition(" ")
        mean = statistics.mean(cell["accuracy"] for cell in by_set.values())
        if value and (option not in best or mean > best[option][0]):
            best[option] = mean, value
    return {option: value for option, (_, value) in best.items()}


def show(results: Mapping[str, Any], spent: Mapping[str, Mapping[str, float]]) -> None:
    """Print the tables."""
    print(table(results))
    for name in next(iter(results.values())):
        print(f"\n{name}")
        for row in details(results, name):
            print("| " + " | ".join(row) + " |")
        for other in AGAINST:
            for label, by_set in results.items():
                if minus := by_set[name].get("minus", {}).get(other):
                    low, high = minus["interval"]
                    print(f"{label} - {other}: {minus['difference']:+.3f} [{low:+.3f}, {high:+.3f}]")
    print(
        "\n| way | seconds | CPU seconds | seconds per token | CPU / plain | per token / plain |\n" + "|---" * 6 + "|"
    )
    for label, cell in spent.items():
        print(f"| {label} | " + " | ".join(f"{value:.3f}" for value in cell.values()) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="nqswap-dev.jsonl.xz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--n", type=int, default=300, help="questions of each set")
    parser.add_argument("--tune", action="store_true", help="compare strengths on the tuning split")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--ways", nargs="+", help="only these; plain is always asked")
    parser.add_argument("--cad", type=float, default=0.5, help="alpha of CAD")
    parser.add_argument("--contrast", type=float, default=0.5, help="alpha of FastMem + CD")
    parser.add_argument("--dola", type=layers_of, default="high", help="high, low, or numbers of layers: 14,20")
    parser.add_argument("--batch", type=int, default=8, help="questions that are asked together")
    parser.add_argument("--max-new-tokens", type=int, default=40)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    split, ways = ("tune", grid()) if args.tune else ("test", compared(args))
    if unknown := set(args.ways or ()) - set(ways):
        parser.error(f"--ways must be among {list(ways)}, got {sorted(unknown)}")
    ways = {label: way for label, way in ways.items() if label == "plain" or not args.ways or label in args.ways}
    sets = [name for name in args.sets if not (args.tune and name == "irrelevant")]
    contexts = list(dict.fromkeys("agrees" if name == "irrelevant" else name for name in sets))
    reading = read(args.data, contexts=contexts, split=split, n=args.n)
    by_set = {n: [i for i in reading.items if i.set == ("agrees" if n == "irrelevant" else n)] for n in sets}
    with Engine.from_pretrained(args.model, dtype=getattr(torch, args.dtype)) as engine:
        about = {"model": engine.fingerprint, "split": split, "tokens": args.max_new_tokens, "dtype": args.dtype}
        about |= {"batch": args.batch}  # rounding in bfloat16 depends on it
        store = Store(args.out / "rows.jsonl", about)
        run(engine, ways, by_set, store, args)
        environment = provenance(engine.model.device)
    rows = collected(ways, by_set, store)
    results, spent = summary(rows, [name for name in AGAINST if name in ways]), times(rows)
    show(results, spent)
    made = {
        "benchmark": "decoding",
        "data": args.data.name,
        "n": {name: len(items) for name, items in by_set.items()},
        "skipped": dict(reading.skipped),
        "failed": sum("error" in row for by in rows.values() for some in by.values() for row in some),
        "chosen": chosen(results) if args.tune else None,
        "settings": {label: way.settings() for label, way in ways.items()},
        **about,
        "results": results,
        "times": spent,
        **environment,
    }
    print(json.dumps(made))


if __name__ == "__main__":
    main()
