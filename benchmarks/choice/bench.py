"""One question set with one model, answered by every method; see `rtd_choice.py`."""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from choice.forms import LABELS, Asked, Scores, Settings, both, conversations, examples, right, rotations_of
from choice.reading import PLACES, Read, read, search, store_of
from choice.sets import Question, Questions
from memograft import Engine

K, HEADS = (8, 32, 128), (4, 16, 32)
WEIGHTS, GATES = (0.1, 0.3, 0.6, 0.9), ("auto", None)
STRENGTHS = (0.001, 0.01, 0.1)  # regularisation C of the probe
MOST_TEXTS = 16  # a probe learns answers as classes if there are no more different ones


class Bench:
    """One question set with one model. What the model computes is kept in `folder`, for a run that continues."""

    def __init__(self, engine: Engine, questions: Questions, size: int, shots: int, folder: Path | None = None) -> None:
        self.engine, self.questions, self.shots, self.folder = engine, questions, shots, folder
        self.size = min(size, len(questions.train) * 3 // 4)  # the rest differs by seed and gives the shots
        self.labels = tuple(engine.encode(label)[0] for label in LABELS)

    def draw(self, seed: int) -> tuple[list[Question], list[Question]]:
        """Return a datastore's questions, and shots from the others that take at most half of the window together."""
        order = random.Random(seed).sample(self.questions.train, len(self.questions.train))
        rest = order[self.size :]
        sizes = {question.id: len(self.engine.encode(rotations_of(question)[0][0])) for question in rest}
        short = [question for question in rest if sizes[question.id] <= self.engine.max_length // (2 * self.shots)]
        if len(short) < self.shots:
            short = sorted(rest, key=lambda question: sizes[question.id])[: self.shots]
        return order[: self.size], random.Random(seed).sample(short, self.shots)

    def ask(self, questions: Sequence[Question], form: str, shots: Sequence[Question] = (), seed: int = 0) -> Asked:
        """Read the questions that are to be answered."""
        rows = conversations(questions, form, shots, seed)
        got = read(self.engine, rows, LABELS, folder=self.folder)
        return Asked(questions, form, got if form == "text" else got.where(got.positions == 0), self.labels)

    def learn(self, questions: Sequence[Question], form: str, shots: Sequence[Question] = (), seed: int = 0) -> Read:
        """Read the examples of a datastore."""
        rows = examples(questions, form, shots, seed)
        return read(self.engine, rows, LABELS, end=True, folder=self.folder)

    def steer(self, asked: Asked, learned: Read, settings: Settings, shuffle: int | None = None) -> Scores:
        """Return the scores with a datastore of the examples."""
        with store_of(self.engine, learned, settings.place, shuffle) as store:
            found = search(store, asked.got.states[settings.place], settings.k, settings.heads)
            return asked.steered(found, settings)

    def tune(self, asked: Asked, learned: Read, heads: Sequence[int]) -> Settings:
        """Return the settings that answer the most questions."""
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

    def tuned_probe(self, asked: Asked, learned: Read, chosen: Sequence[Question]) -> tuple[str, float] | None:
        """Return place and strength of the probe that answers the most questions; None if none can be trained."""
        best: tuple[float, tuple[str, float]] | None = None
        for place, strength in itertools.product(PLACES, STRENGTHS):
            if (probe := trained(asked.form, learned, chosen, place, strength)) is None:
                return None
            value = float(right(asked.questions, asked.probed(probe, place)).mean())
            if best is None or value > best[0]:
                best = value, (place, strength)
        assert best is not None
        return best[1]

    def run(self, seeds: int) -> tuple[dict[str, list[Scores]], dict[str, Any]]:
        """Return method -> scores by seed, and the tuned settings."""
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
                learned = self.learn(chosen, form)
                if seed == 0:
                    one, more = self.tune(held, learned, (1,)), self.tune(held, learned, self._heads(learned))
                    fit = self.tuned_probe(held, learned, chosen)
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
                if fit is not None and (probe := trained(form, learned, chosen, *fit)) is not None:
                    results["linear probe"] = zero.probed(probe, fit[0])
                if form == "label":
                    results["RTD + text"] = [both(a, b) for a, b in zip(plain["text"], steered, strict=True)]
                for name, scores in results.items():
                    found.setdefault(f"{form}: {name}", []).append(scores)
                bar.update()
        return found, tuned

    def _heads(self, learned: Read) -> list[int]:
        width = learned.states[PLACES[0]].shape[1]
        return [h for h in HEADS if width % h == 0]


def trained(form: str, learned: Read, chosen: Sequence[Question], place: str, strength: float) -> Pipeline | None:
    """Return a linear probe of the states in a datastore of `chosen`; None for texts with too many answers."""
    first = learned.where(learned.positions == 0)
    classes = first.tokens if form == "label" else np.array([question.answer for question in chosen])[first.rows]
    if len(set(classes.tolist())) > MOST_TEXTS:
        return None
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=200))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(first.states[place], classes)
