"""Multiple choice: a datastore with a frozen model, compared with few shots and a linear probe of the same states.

    python benchmarks/rtd_choice.py                                  # the facts that "tiny" knows
    python benchmarks/rtd_choice.py --data FOLDER                    # and OpenBookQA and ARC-Easy: 17 minutes of a core
    python benchmarks/rtd_choice.py --data FOLDER --model smollm2 --sets OpenBookQA ARC-Easy --n 100 --seeds 2

FOLDER has openbookqa-train.json.xz, openbookqa-test.json.xz, arc_easy-train.json.xz and arc_easy-test.json.xz in the
layout of LLM-Adapters (an `instruction` with "Answer1: ..." and so on, and an `answer`).

Questions are asked in two forms. In "text", each option is an answer, scored by the mean log-probability of its tokens,
as in `Engine.choose`. In "label", the form of the paper, the prompt lists the options as A., B., ..., once for each
rotation, and the label is scored (`by_labels` of `choice/forms.py`). A datastore is built from train questions in the
same form. "RTD + text" is the sum of labels with RTD and text without RTD, each as log-probabilities over the options.
In the set "world facts", the wrong answers have the same relation. "world kinds" asks what kind of thing a name is,
which is not in tiny's training. No fact and no name is both in a datastore and in the test.

Settings (k, heads, place, and for "text" weight and gate) and those of the probe are tuned with seed 0 on train
questions that are in no datastore; temperatures are calibrated automatically. The seed determines the questions of the
datastore and the shots. Intervals are 95% bootstraps over the test questions of the mean over the seeds; `by_seed` has
the results of each seed. A question counts as wrong if one of its prompts does not fit the window.

Controls: chance; always the position that most train answers have; "shuffled", a datastore whose tokens were exchanged
among its entries, which shows the effect of the frequencies of the answers alone.

What the model computes for each set, form and seed is kept in a folder, from which an interrupted run of the same
commit continues. Prints tables and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from choice.bench import Bench
from choice.forms import Scores, right
from choice.sets import Questions, mcqa, world_facts, world_kinds
from choice.speed import compared, shown, speed
from numpy.typing import NDArray

from memograft import Engine
from memograft.evaluation.metrics import interval
from memograft.evaluation.provenance import provenance

FILES = {"OpenBookQA": "openbookqa", "ARC-Easy": "arc_easy"}
SETS = ("world facts", "world kinds", *FILES)


def cells(questions: Questions, found: dict[str, list[Scores]]) -> dict[str, Any]:
    """Method -> its numbers."""
    test, results = questions.test, dict[str, Any]()
    chance = np.array([1 / len(question.options) for question in test])
    results["chance"] = {"n": len(test), "accuracy": round(float(chance.mean()), 4)}
    usual = statistics.mode(question.right for question in questions.train)
    results["always the most frequent place"] = _cell([np.array([float(q.right == usual) for q in test])])
    values = {name: [right(test, scores) for scores in by_seed] for name, by_seed in found.items()}
    for name, by_seed in values.items():
        results[name] = _cell(by_seed) | {"unfit": [sum(s is None for s in scores) for scores in found[name]]}
        base = f"{name.split(':')[0]}: zero-shot"
        if name != base:
            change = np.mean(by_seed, 0) - np.mean(values[base], 0)
            results[name] |= {"minus_zero_shot": round(float(change.mean()), 4), "minus_interval": interval(change)}
        low, high = results[name]["interval"]
        results[name]["verdict"] = "above" if low > chance.mean() else "below" if high < chance.mean() else "at"
    return results


def _cell(by_seed: Sequence[NDArray[np.float64]]) -> dict[str, Any]:
    mean = np.mean(by_seed, 0)
    each = [round(float(values.mean()), 4) for values in by_seed]
    return {"n": len(mean), "accuracy": round(float(mean.mean()), 4), "interval": interval(mean), "by_seed": each}


def show(results: dict[str, dict[str, Any]], about: dict[str, Any]) -> None:
    """Print a table of accuracies, and the methods that are above chance."""
    sets = list(results)
    print("\n| method | " + " | ".join(f"{s}, n={results[s]['chance']['n']}" for s in sets) + " |")
    print("|---|" + "---|" * len(sets))
    methods = dict.fromkeys(itertools.chain.from_iterable(results.values()))
    for method in sorted(methods, key=lambda method: (":" in method, method.startswith("label"))):
        row = [results[s].get(method) for s in sets]
        print(f"| {method} | " + " | ".join(map(_shown, row)) + " |")
    for name, cells_ in results.items():
        alone = [method for method in cells_ if method.endswith("zero-shot") and cells_[method]["verdict"] == "above"]
        above = [method for method, cell in cells_.items() if cell.get("verdict") == "above"]
        said = f"above chance ({alone[0]})" if alone else "at chance: these questions are beyond it"
        print(f"\n{name}: the model by itself is {said}. Intervals above chance: {', '.join(above) or 'none'}.")
        if unfit := {method: cell["unfit"] for method, cell in cells_.items() if any(cell.get("unfit", ()))}:
            print(f"{name}: questions that do not fit the window, counted as wrong, by seed: {unfit}")
        print(f"{name}: {about[name]['as_choose']} of scores by the engine.")


def _shown(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "-"
    span = "" if "interval" not in cell else " [{:.3f}, {:.3f}]".format(*cell["interval"])
    return f"{cell['accuracy']:.3f}{span}"


def asked(name: str, data: Path, n: int, tune: int) -> Questions:
    """The questions of a set: `n` of its test, `tune` for choosing settings."""
    if name in FILES:
        return mcqa(data, FILES[name], name, n, tune)
    return {"world facts": world_facts, "world kinds": world_kinds}[name](n, tune)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="an id, a folder, or the bundled tiny")
    parser.add_argument("--data", type=Path, help="the folder of OpenBookQA and ARC-Easy")
    parser.add_argument("--sets", nargs="+", choices=SETS, help="ask only these; left out, all")
    parser.add_argument("--folder", type=Path, default=Path("runs/rtd-choice"), help="keeps what the model computes")
    parser.add_argument("--n", type=int, default=500, help="test questions of a set at most")
    parser.add_argument("--datastore", type=int, default=256, help="questions in a datastore at most")
    parser.add_argument("--tune", type=int, default=128, help="questions to tune on at most")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=5, help="of the timings; 0 for none")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="for the JSON, such as benchmarks/results/rtd-choice.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    wanted = args.sets or [name for name in SETS if args.data or name not in FILES]
    if not args.data and set(wanted) & set(FILES):
        parser.error(f"{' and '.join(FILES)} are read from files; name their folder with --data")
    results, tuned, about = dict[str, Any](), dict[str, Any](), dict[str, Any]()
    with Engine.from_pretrained(args.model) as engine:
        origin = provenance(engine._backbone.device)  # taken now, for the code that is loaded
        for name in wanted:
            questions = asked(name, args.data, args.n, args.tune)
            bench = Bench(engine, questions, args.datastore, args.shots, args.folder)
            found, tuned[questions.name] = bench.run(args.seeds)
            results[questions.name] = cells(questions, found)
            about[questions.name] = {
                "datastore_questions": bench.size,
                "tune": len(questions.tune),
                "left_out": questions.left_out,
                "as_choose": compared(bench, tuned[questions.name]),
            }
        show(results, about)
        times = speed(bench, tuned[bench.questions.name], args.repeat) if args.repeat else None  # for the last set
        print(shown(times) if times else "")
    record = {
        "benchmark": "rtd-choice",
        "model": args.model,
        "seeds": list(range(args.seeds)),
        "shots": args.shots,
        "sets": about,
        "tuned": tuned,
        "results": results,
        "speed": times,
        **origin,
    }
    line = json.dumps(record)
    if args.out:
        args.out.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
