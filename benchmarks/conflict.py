"""Does memorizing make tiny follow its documents, and what does it cost? Four sets, paired, with controls.

    python benchmarks/conflict.py                     # the table of the README: test split, 400 questions a set
    python benchmarks/conflict.py --split tune --grid # how the defaults were chosen, on other questions

Prints a table for people and, as the very last line, one JSON object. Results are kept per method while it runs,
so a run that was interrupted goes on where it stopped (delete the --out file to start anew).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import ROOT, provenance
from tqdm import tqdm
from transformers import LogitsProcessor

from memograft import Engine, FastMem, Request, Sampling

sys.path.insert(0, str(ROOT / "recipes" / "tiny"))
from language import RELATIONS
from sets import SETS, Item, items

Method = Callable[[Engine, Item], Request]
SAMPLING = Sampling(max_new_tokens=40)


class Restricted(LogitsProcessor):
    """The honest control: plain decoding among tokens of the documents, the question and the answer frames."""

    supports_continuous_batching = False

    def __init__(self, engine: Engine, item: Item) -> None:
        frames = [r.answer.replace("{s}", "").replace("{v}", "") for r in RELATIONS.values()]
        # With a space in front too: that is how a word looks inside a sentence.
        texts = [t for text in (*item.documents, item.question, *frames, ".") for t in (text, " " + text)]
        allowed = {i for text in texts for i in engine.tokenizer(text, add_special_tokens=False)["input_ids"]}
        allowed.add(engine.tokenizer.eos_token_id)
        self._allowed = torch.tensor(sorted(allowed))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        kept = torch.full_like(scores, -torch.inf)
        kept[:, self._allowed] = scores[:, self._allowed]
        return kept


def memorized(memory: FastMem) -> Method:
    return lambda engine, item: Request(item.question, documents=item.documents, memory=memory, sampling=SAMPLING)


def methods() -> dict[str, Method]:
    return {
        "no document": lambda engine, item: Request(item.question, sampling=SAMPLING),
        "plain": lambda engine, item: Request(item.question, documents=item.documents, sampling=SAMPLING),
        "plain, restricted": lambda engine, item: Request(
            item.question, documents=item.documents, sampling=SAMPLING, processors=[Restricted(engine, item)]
        ),
        "memorized (default)": memorized(FastMem()),
        "memorized, support gate": memorized(FastMem(gate="support")),
        "paper's recipe": memorized(FastMem.paper()),
        "paper's recipe, lr 1e-3": memorized(FastMem.paper(learning_rate=1e-3)),
    }


def grid() -> dict[str, Method]:
    found: dict[str, Method] = {"plain": methods()["plain"]}
    for steps, rates in ((10, (2e-3, 3e-3, 4e-3, 5e-3, 6e-3, 8e-3)), (4, (6e-3, 1e-2))):
        for rate in rates:
            found[f"r16 all, {steps} x {rate:g}"] = memorized(FastMem(steps=steps, learning_rate=rate))
    for rate in (5e-3, 8e-3, 1e-2):
        found[f"r16 down, 10 x {rate:g}"] = memorized(FastMem(learning_rate=rate, targets="down"))
    for rate, weight in ((5e-3, 0.3), (8e-3, 0.3), (8e-3, 1.0)):
        found[f"r16 all, 10 x {rate:g}, KL {weight}"] = memorized(FastMem(learning_rate=rate, kl_weight=weight))
    for rate in (3e-4, 1e-3, 3e-3):
        found[f"paper's recipe, lr {rate:g}"] = memorized(FastMem.paper(learning_rate=rate))
    return found


def says(text: str, value: str) -> bool:
    """Whether the text holds the value as whole words."""
    return bool(value) and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None


def run(engine: Engine, method: Method, questions: Sequence[Item], label: str, batch: int = 16) -> list[dict[str, Any]]:
    """One record per question, in order; a request that failed counts as wrong and says why."""
    records = []
    for start in tqdm(range(0, len(questions), batch), desc=label, leave=False):
        part = questions[start : start + batch]
        answers = engine.answer_batch([method(engine, item) for item in part], return_exceptions=True)
        for item, answer in zip(part, answers, strict=True):
            if isinstance(answer, Exception):
                records.append({"id": item.id, "right": False, "belief": False, "error": repr(answer)})
                continue
            record = {
                "id": item.id,
                "right": says(answer.text, item.right),
                "belief": says(answer.text, item.belief),
                "kind": item.kind,
                "text": answer.text,
            }
            if answer.memory is not None:
                m = answer.memory
                record |= {"before": m.loss_before, "after": m.loss_after, "kl": m.kl, "rolled_back": m.rolled_back}
            records.append(record)
    return records


def interval(right: np.ndarray, plain: np.ndarray, rounds: int = 10_000) -> tuple[list[float], list[float]]:
    """95% bootstrap intervals of the accuracy and of its paired difference to plain."""
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(right), (rounds, len(right)))
    means, differences = right[picks].mean(1), (right - plain)[picks].mean(1)
    return [[round(float(q), 4) for q in np.quantile(v, (0.025, 0.975))] for v in (means, differences)]  # type: ignore[return-value]


def summary(records: dict[str, dict[str, list[dict[str, Any]]]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for method, by_set in records.items():
        out[method] = {}
        for name, rows in by_set.items():
            right = np.array([r["right"] for r in rows], float)
            plain = np.array([r["right"] for r in records["plain"][name]], float)
            accuracy, difference = interval(right, plain)
            cell: dict[str, Any] = {
                "n": len(rows),
                "accuracy": round(float(right.mean()), 4),
                "interval": accuracy,
                "minus_plain": round(float((right - plain).mean()), 4),
                "minus_plain_interval": difference,
                "belief": round(float(np.mean([r["belief"] for r in rows])), 4),
                "failed": sum("error" in r for r in rows),
            }
            if any("after" in r for r in rows):
                for key in ("before", "after", "kl"):
                    cell[f"mean_{key}"] = round(float(np.nanmean([r[key] for r in rows if key in r])), 4)
                cell["rolled_back"] = sum(r.get("rolled_back", False) for r in rows)
            for kind in sorted({r.get("kind", "") for r in rows} - {""}):
                cell[f"accuracy_{kind}"] = round(float(np.mean([r["right"] for r in rows if r.get("kind") == kind])), 4)
            out[method][name] = cell
    return out


def table(results: dict[str, Any]) -> str:
    sets = list(next(iter(results.values())))
    lines = ["| method | " + " | ".join(sets) + " |", "|---|" + "---|" * len(sets)]
    for method, by_set in results.items():
        cells = []
        for c in by_set.values():
            low, high = c["minus_plain_interval"]
            change = "" if method == "plain" else f" ({c['minus_plain']:+.3f} [{low:+.3f}, {high:+.3f}])"
            cells.append(f"{c['accuracy']:.3f}{change}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--split", choices=("tune", "test"), default="test")
    parser.add_argument("--grid", action="store_true", help="many settings instead of the methods of the table")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS, help="to share the work among processes")
    parser.add_argument("--n", type=int, default=400, help="questions per set")
    parser.add_argument("--out", type=Path, help="records, one JSON line per method and set")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    engine = Engine.from_pretrained(args.model)
    out = args.out or ROOT / "runs" / f"conflict-{args.split}{'-grid' if args.grid else ''}-{args.n}.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    done = {(r["method"], r["set"]): r for r in map(json.loads, out.open())} if out.exists() else {}
    records: dict[str, dict[str, list[dict[str, Any]]]] = {}
    seconds: dict[str, float] = {}
    with out.open("a") as log:
        for label, method in (grid() if args.grid else methods()).items():
            for name in args.sets:
                if (label, name) not in done:
                    began = time.perf_counter()
                    found = run(engine, method, items(name, args.n, args.split), f"{label}: {name}")
                    took = round(time.perf_counter() - began, 2)
                    done[label, name] = {"method": label, "set": name, "seconds": took, "records": found}
                    log.write(json.dumps(done[label, name]) + "\n")
                    log.flush()
                records.setdefault(label, {})[name] = done[label, name]["records"]
                seconds[f"{label}: {name}"] = done[label, name]["seconds"]
    results = summary(records)
    print(table(results))
    print(
        json.dumps(
            {
                "benchmark": "conflict",
                "model": Path(args.model).name,
                "split": args.split,
                "seeds": "one training seed; questions are drawn from the split's name",
                "n": args.n,
                "results": results,
                "default": asdict(FastMem()),
                "sampling": asdict(SAMPLING),
                **provenance(args.threads),
                "seconds": seconds,
            }
        )
    )


if __name__ == "__main__":
    main()
