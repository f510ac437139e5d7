"""Multiple choice: what a datastore adds to a frozen model, beside few shots and a linear probe of the same states.

    python benchmarks/rtd_choice.py                                  # the world that "tiny" knows
    python benchmarks/rtd_choice.py --data FOLDER                    # and OpenBookQA and ARC-Easy, from FOLDER

FOLDER holds openbookqa-train.json.xz, openbookqa-test.json.xz, arc_easy-train.json.xz and arc_easy-test.json.xz in the
layout of LLM-Adapters (an `instruction` with "Answer1: ..." and so on, and an `answer`).

Questions are asked in two forms, as `Engine.choose` does. "text": each option as an answer, by the mean log-probability
of its tokens (`by="likelihood"`); "label": the options stand behind A., B., ... in the prompt, once per rotation, and
the label is what is scored (`by="rtd"`). A datastore is built from train questions in the same form. Settings (k, heads,
place, and for "text" weight and gate) are tuned on train questions that are in no datastore, those of the probe too;
temperatures calibrate themselves. Seeds decide which questions are in the datastore and which are the shots. Intervals
are 95% bootstraps over the test questions of the mean over the seeds. A question of which a prompt does not fit the
window counts as wrong, and is counted.

Controls: chance; always the place of most train answers; a datastore whose tokens changed places among its entries.

Prints tables and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rtd_choice_reading import PLACES, Found, Message, Read, read, search, store_of
from rtd_choice_sets import Question, Questions, mcqa, world_facts, world_kinds
from rtd_choice_speed import compared, shown, speed
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from memograft import Engine
from memograft.evaluation.metrics import interval
from memograft.evaluation.provenance import provenance
from memograft.scoring import rotations

LABELS = "ABCDE"
K, HEADS, WEIGHTS, GATES, STRENGTHS = (8, 32, 128), (4, 16, 32), (0.1, 0.3, 0.6, 0.9), ("auto", None), (0.001, 0.01, 0.1)
LEAST = 1e-30  # of p_LM that `Rtd` leaves at weight 1
MOST_TEXTS = 16  # different answers up to which a probe can learn them as classes
Scores = list[NDArray[np.float64] | None]  # one for each question; None where a prompt did not fit


@dataclass(frozen=True)
class Settings:
    """What is tuned of an `Rtd`; `weight` and `gate` matter to "text" only."""

    place: str
    k: int
    heads: int
    weight: float
    gate: str | None


@dataclass(frozen=True)
class Asked:
    """Questions in one form, read: row `starts[q] + n` is option n of question q, or its rotation n."""

    questions: Sequence[Question]
    form: str
    got: Read
    labels: tuple[int, ...]  # first tokens of A, B, ...

    def by_question(self, rows: NDArray[np.float64]) -> Scores:
        """(R,) or (R, L) numbers of rows -> scores of options, by question."""
        counts = [len(question.options) for question in self.questions]
        parts = np.split(rows, np.cumsum(counts)[:-1])
        if self.form == "label":
            turned = [[np.roll(row[: len(part)], turn) for turn, row in enumerate(part)] for part in parts]
            parts = [np.mean(turns, 0) for turns in turned]
        return [None if np.isnan(part).any() else part for part in parts]

    def rows(self, each: NDArray[np.float64]) -> NDArray[np.float64]:
        """Numbers of the tokens that were read (N,) or (N, L) -> their means by row; nan of rows that do not fit."""
        total = sum(len(question.options) for question in self.questions)
        sums, counts = np.zeros((total, *each.shape[1:])), np.zeros((total, *[1] * (each.ndim - 1)))
        np.add.at(sums, self.got.rows, each)
        np.add.at(counts, self.got.rows, 1)
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

    def plain(self) -> Scores:
        """By the model alone."""
        return self.by_question(self.rows(self.got.chosen if self.form == "text" else self.got.among))

    def steered(self, found: Found, settings: Settings) -> Scores:
        """As `choose` has it with an `Rtd` of these settings: by likelihood where the form is "text", else by "rtd"."""
        if self.form == "label":
            r = found.chances(settings.k, np.array(self.labels))
            return self.by_question(self.rows(np.logaddexp(_log(r), np.log(LEAST) + self.got.among)))
        r = found.chances(settings.k, self.got.tokens[:, None])[:, 0]
        mixed = np.logaddexp(_log(settings.weight * r), np.log1p(-settings.weight) + self.got.chosen)
        return self.by_question(self.rows(np.where(found.near | (settings.gate is None), mixed, self.got.chosen)))

    def probed(self, probe: Pipeline, place: str) -> Scores:
        """By a probe of the states before the first tokens: of labels, or of whole answers."""
        first = self.got.where(self.got.positions == 0)
        logp = probe.predict_log_proba(first.states[place])
        classes = {name: n for n, name in enumerate(probe.classes_)}
        logp = np.concatenate([logp, np.full((len(logp), 1), np.log(LEAST))], 1)  # the last: a class never seen
        if self.form == "label":
            columns = [classes.get(token, -1) for token in self.labels]
            return Asked(self.questions, "label", first, self.labels).by_question(self._of(first, logp[:, columns]))
        options = [option for question in self.questions for option in question.options]
        chances = np.array([logp[n, classes.get(options[row], -1)] for n, row in enumerate(first.rows)])
        return self.by_question(self._of(first, chances))

    def _of(self, first: Read, each: NDArray[np.float64]) -> NDArray[np.float64]:
        return Asked(self.questions, self.form, first, self.labels).rows(each)


def conversations(
    questions: Sequence[Question], form: str, shots: Sequence[Question], seed: int
) -> list[tuple[list[Message], str]]:
    """What is asked: every option of every question, or every rotation, behind the shots."""
    rng, before = random.Random(seed), list[Message]()
    for shot in shots:
        asked, answer = (shot.text, shot.answer) if form == "text" else rng.choice(_turned(shot))
        before += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    if form == "text":
        pairs = [(question.text, option) for question in questions for option in question.options]
    else:
        pairs = [pair for question in questions for pair in _turned(question)]
    return [([*before, {"role": "user", "content": asked}], answer) for asked, answer in pairs]


def examples(questions: Sequence[Question], form: str, shots: Sequence[Question], seed: int) -> list[Any]:
    """What a datastore is built of: (messages, answer) with the right answers only."""
    asked = conversations(questions, form, shots, seed)
    if form == "label":
        return asked
    right = {(question.text, question.answer) for question in questions}
    return [(messages, answer) for messages, answer in asked if (messages[-1]["content"], answer) in right]


class Bench:
    """One set of questions with one model."""

    def __init__(self, engine: Engine, questions: Questions, size: int, shots: int) -> None:
        self.engine, self.questions, self.shots = engine, questions, shots
        self.size = min(size, len(questions.train) * 3 // 4)  # so that seeds differ, and there are others for shots
        self.labels = tuple(engine.encode(label)[0] for label in LABELS)

    def draw(self, seed: int) -> tuple[list[Question], list[Question]]:
        """A datastore's questions and the shots, which are of the shorter half of the others, that they may fit."""
        order = random.Random(seed).sample(self.questions.train, len(self.questions.train))
        rest = sorted(order[self.size :], key=lambda question: len(question.text) + len(" ".join(question.options)))
        return order[: self.size], random.Random(seed).sample(rest[: max(self.shots, len(rest) // 2)], self.shots)

    def ask(self, questions: Sequence[Question], form: str, shots: Sequence[Question] = (), seed: int = 0) -> Asked:
        """Read questions that are to be answered."""
        rows = conversations(questions, form, shots, seed)
        got = read(self.engine, rows, LABELS)
        return Asked(questions, form, got if form == "text" else got.where(got.positions == 0), self.labels)

    def learn(self, questions: Sequence[Question], form: str, shots: Sequence[Question] = (), seed: int = 0) -> Read:
        """Read what a datastore is made of."""
        return read(self.engine, examples(questions, form, shots, seed), LABELS, end=True)

    def steer(self, asked: Asked, learned: Read, settings: Settings, shuffle: int | None = None) -> Scores:
        """Scores with a datastore of what was learned."""
        with store_of(self.engine, learned, settings.place, shuffle) as store:
            found = search(store, asked.got.states[settings.place], settings.k, settings.heads)
            return asked.steered(found, settings)

    def tune(self, asked: Asked, learned: Read, heads: Sequence[int]) -> Settings:
        """The settings that answer most of the questions."""
        best: tuple[float, Settings] | None = None
        weights = WEIGHTS if asked.form == "text" else (1.0,)
        gates: Sequence[str | None] = GATES if asked.form == "text" else (None,)
        for place in PLACES:
            with store_of(self.engine, learned, place) as store:
                for h in heads:
                    found = search(store, asked.got.states[place], max(K), h)
                    for k, weight, gate in itertools.product(K, weights, gates):
                        settings = Settings(place, k, h, weight, gate)
                        value = float(right(asked.questions, asked.steered(found, settings)).mean())
                        if best is None or value > best[0]:
                            best = value, settings
        assert best is not None
        return best[1]

    def probe(self, learned: Read, form: str, place: str, strength: float) -> Pipeline | None:
        """A linear probe of the states that the datastore has; None for texts of too many kinds."""
        first = learned.where(learned.positions == 0)
        classes: Any = first.tokens
        if form == "text":
            classes = np.array(self._texts)[first.rows]
            if len(set(classes)) > MOST_TEXTS:
                return None
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=200))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return model.fit(first.states[place], classes)

    def tuned_probe(self, asked: Asked, learned: Read) -> tuple[str, float] | None:
        """Place and strength of the probe that answers most of the questions."""
        best: tuple[float, tuple[str, float]] | None = None
        for place, strength in itertools.product(PLACES, STRENGTHS):
            if (probe := self.probe(learned, asked.form, place, strength)) is None:
                return None
            value = float(right(asked.questions, asked.probed(probe, place)).mean())
            if best is None or value > best[0]:
                best = value, (place, strength)
        assert best is not None
        return best[1]

    def run(self, seeds: int) -> tuple[dict[str, list[Scores]], dict[str, Any]]:
        """Method -> scores by seed; and the settings that were tuned."""
        found: dict[str, list[Scores]] = {}
        tuned: dict[str, Any] = {}
        test, tune = self.questions.test, self.questions.tune
        bar = tqdm(total=2 * (seeds + 1), desc=self.questions.name)
        plain: dict[str, Scores] = {}
        for form in ("text", "label"):
            zero, held = self.ask(test, form), self.ask(tune, form)
            plain[form] = zero.plain()
            bar.update()
            for seed in range(seeds):
                chosen, shots = self.draw(seed)
                self._texts = [question.answer for question in chosen]
                learned = self.learn(chosen, form)
                if seed == 0:
                    one, more = self.tune(held, learned, (1,)), self.tune(held, learned, self._heads(learned))
                    fit = self.tuned_probe(held, learned)
                    tuned[form] = {"RTD": vars(one), "MH-RTD": vars(more), "probe": fit}
                few = self.ask(test, form, shots, seed)
                steered = self.steer(zero, learned, one)
                results = {
                    "zero-shot": plain[form],
                    f"{self.shots}-shot": few.plain(),
                    "RTD": steered,
                    "MH-RTD": self.steer(zero, learned, more),
                    f"{self.shots}-shot + RTD": self.steer(few, self.learn(chosen, form, shots, seed), one),
                    "RTD, shuffled": self.steer(zero, learned, one, shuffle=seed),
                }
                if fit is not None:
                    probe = self.probe(learned, form, *fit)
                    assert probe is not None
                    results["linear probe"] = zero.probed(probe, fit[0])
                if form == "label":
                    results["both"] = [_both(a, b) for a, b in zip(plain["text"], steered, strict=True)]
                for name, scores in results.items():
                    found.setdefault(f"{form}: {name}", []).append(scores)
                bar.update()
        return found, tuned

    def _heads(self, learned: Read) -> list[int]:
        width = learned.states[PLACES[0]].shape[1]
        return [h for h in HEADS if width % h == 0]


def right(questions: Sequence[Question], scores: Scores) -> NDArray[np.float64]:
    """(Q,) 1 where the best option is the right one."""
    pairs = zip(questions, scores, strict=True)
    return np.array([float(s is not None and int(s.argmax()) == question.right) for question, s in pairs])


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


def _both(text: NDArray[np.float64] | None, label: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    if text is None or label is None:
        return None
    return (text - np.logaddexp.reduce(text)) + (label - np.logaddexp.reduce(label))


def _turned(question: Question) -> list[tuple[str, str]]:
    return rotations(question.text, question.options, question.answer)


def _log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return np.log(values)


def show(results: dict[str, dict[str, Any]]) -> None:
    """A table of accuracies, and in words what is above chance."""
    sets = list(results)
    print("\n| method | " + " | ".join(f"{s}, n={results[s]['chance']['n']}" for s in sets) + " |")
    print("|---|" + "---|" * len(sets))
    for method in dict.fromkeys(itertools.chain.from_iterable(results.values())):
        row = [results[s].get(method) for s in sets]
        print(f"| {method} | " + " | ".join(map(_shown, row)) + " |")
    for name, methods in results.items():
        above = [method for method, cell in methods.items() if cell.get("verdict") == "above"]
        print(f"\n{name}: above chance: {', '.join(above) or 'nothing; the model is too small for these questions'}.")
        if unfit := {method: cell["unfit"] for method, cell in methods.items() if any(cell.get("unfit", ()))}:
            print(f"{name}: questions that do not fit the window, counted as wrong, by seed: {unfit}")


def _shown(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "-"
    span = "" if "interval" not in cell else " [{:.3f}, {:.3f}]".format(*cell["interval"])
    return f"{cell['accuracy']:.3f}{span}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="an id, a folder, or the bundled tiny")
    parser.add_argument("--data", type=Path, help="the folder of OpenBookQA and ARC-Easy")
    parser.add_argument("--n", type=int, default=500, help="test questions of a set at most")
    parser.add_argument("--datastore", type=int, default=512, help="questions in a datastore at most")
    parser.add_argument("--tune", type=int, default=128, help="questions to tune on at most")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=5, help="of the timings")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="for the JSON, such as benchmarks/results/rtd-choice.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sets: list[Callable[[], Questions]] = [
        lambda: world_facts(args.n, args.tune),
        lambda: world_kinds(args.n, args.tune),
    ]
    for file, name in (("openbookqa", "OpenBookQA"), ("arc_easy", "ARC-Easy")) if args.data else ():
        sets.append(lambda file=file, name=name: mcqa(args.data, file, name, args.n, args.tune))  # type: ignore[misc]
    results, tuned, about = dict[str, Any](), dict[str, Any](), dict[str, Any]()
    with Engine.from_pretrained(args.model) as engine:
        for made in sets:
            questions = made()
            bench = Bench(engine, questions, args.datastore, args.shots)
            found, tuned[questions.name] = bench.run(args.seeds)
            results[questions.name] = cells(questions, found)
            about[questions.name] = {
                "datastore_questions": bench.size,
                "tune": len(questions.tune),
                "left_out": questions.left_out,
                "as_choose": compared(bench, tuned[questions.name]),
            }
        show(results)
        times = speed(bench, tuned[bench.questions.name], args.repeat)  # of the last set
        print(shown(times))
        device = engine._backbone.device
    record = {
        "benchmark": "rtd-choice",
        "model": args.model,
        "seeds": list(range(args.seeds)),
        "shots": args.shots,
        "sets": about,
        "tuned": tuned,
        "results": results,
        "speed": times,
        **provenance(device),
    }
    line = json.dumps(record)
    if args.out:
        args.out.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
