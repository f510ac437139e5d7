"""The two forms in which `rtd_choice.py` asks a question, and all methods that score them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

from choice.reading import Found, Message, Read
from choice.sets import Question
from memograft import Datastore, Engine, Request, Rtd

LABELS = "ABCDE"
LEAST = 1e-30  # share of p_LM that `Rtd` keeps at weight 1
Scores = list[NDArray[np.float64] | None]  # one for each question; None if a prompt did not fit


@dataclass(frozen=True)
class Settings:
    """The tuned settings of an `Rtd`; `weight` and `gate` are used for "text" only."""

    place: str
    k: int
    heads: int
    weight: float
    gate: str | None


@dataclass(frozen=True)
class Asked:
    """Questions in one form: row `starts[q] + n` is option n of question q, or its rotation n."""

    questions: Sequence[Question]
    form: str
    got: Read
    labels: tuple[int, ...]  # first tokens of A, B, ...

    def by_question(self, rows: NDArray[np.float64]) -> Scores:
        """(R,) or (R, L) values of rows -> scores of the options, for each question."""
        counts = [len(question.options) for question in self.questions]
        parts = np.split(rows, np.cumsum(counts)[:-1])
        if self.form == "label":
            turned = [[np.roll(row[: len(part)], turn) for turn, row in enumerate(part)] for part in parts]
            parts = [np.mean(turns, 0) for turns in turned]
        return [None if np.isnan(part).any() else part for part in parts]

    def rows(self, each: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values of the tokens (N,) or (N, L) -> their means for each row; nan for rows that did not fit."""
        total = sum(len(question.options) for question in self.questions)
        sums, counts = np.zeros((total, *each.shape[1:])), np.zeros((total, *[1] * (each.ndim - 1)))
        np.add.at(sums, self.got.rows, each)
        np.add.at(counts, self.got.rows, 1)
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

    def plain(self) -> Scores:
        """Score with the model alone."""
        return self.by_question(self.rows(self.got.chosen if self.form == "text" else self.got.among))

    def steered(self, found: Found, settings: Settings) -> Scores:
        """Score with an `Rtd` of these settings: like `Engine.choose` for the form "text", else like `by_labels`."""
        if self.form == "label":
            r = found.chances(settings.k, np.array(self.labels))
            return self.by_question(self.rows(np.logaddexp(_log(r), np.log(LEAST) + self.got.among)))
        r = found.chances(settings.k, self.got.tokens[:, None])[:, 0]
        mixed = np.logaddexp(_log(settings.weight * r), np.log1p(-settings.weight) + self.got.chosen)
        return self.by_question(
            self.rows(np.where((settings.gate is None) | found.open(settings.k), mixed, self.got.chosen))
        )

    def probed(self, probe: Pipeline, place: str) -> Scores:
        """Score with a probe of the states before the first tokens, which predicts labels or whole answers."""
        first = self.got.where(self.got.positions == 0)
        logp = probe.predict_log_proba(first.states[place])
        classes = {name: n for n, name in enumerate(probe.classes_)}
        logp = np.concatenate([logp, np.full((len(logp), 1), np.log(LEAST))], 1)  # the last: an unseen class
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
    """Return the prompts: every option of every question, or every rotation, after the shots."""
    rng, before = random.Random(seed), list[Message]()
    for shot in shots:
        asked, answer = (shot.text, shot.answer) if form == "text" else rng.choice(rotations_of(shot))
        before += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    if form == "text":
        pairs = [(question.text, option) for question in questions for option in question.options]
    else:
        pairs = [pair for question in questions for pair in rotations_of(question)]
    return [([*before, {"role": "user", "content": asked}], answer) for asked, answer in pairs]


def examples(questions: Sequence[Question], form: str, shots: Sequence[Question], seed: int) -> list[Any]:
    """Return the examples of a datastore: (messages, answer), with right answers only."""
    asked = conversations(questions, form, shots, seed)
    if form == "label":
        return asked
    starts = accumulate((len(question.options) for question in questions), initial=0)
    return [asked[start + question.right] for start, question in zip(starts, questions, strict=False)]


def right(questions: Sequence[Question], scores: Scores) -> NDArray[np.float64]:
    """(Q,) 1 if the best option is the right one."""
    pairs = zip(questions, scores, strict=True)
    return np.array([float(s is not None and int(s.argmax()) == question.right) for question, s in pairs])


def both(text: NDArray[np.float64] | None, label: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    """The sum of both as log-probabilities over the options."""
    if text is None or label is None:
        return None
    return (text - np.logaddexp.reduce(text)) + (label - np.logaddexp.reduce(label))


def rotations_of(question: Question) -> list[tuple[str, str]]:
    """(prompt with labelled options, right label) for each rotation: at turn t, option o has label o - t."""
    options, pairs = question.options, list[tuple[str, str]]()
    for turn in range(len(options)):
        order = [*options[turn:], *options[:turn]]
        listed = "\n".join(f"{label}. {option}" for label, option in zip(LABELS, order, strict=False))
        pairs.append((f"{question.text}\n{listed}", LABELS[(question.right - turn) % len(options)]))
    return pairs


def by_labels(engine: Engine, question: Question, store: Datastore, settings: Settings) -> NDArray[np.float64]:
    """(O,) The method of the paper, with the engine: the mean over the rotations of log r of each option's label.

    At weight 1 only the entries of the datastore count, also if no entry is near.
    """
    steer = Rtd(store, k=settings.k, heads=settings.heads, weight=1.0, gate=None)
    labels = [engine.encode(label)[0] for label in LABELS[: len(question.options)]]
    asked = [Request(prompt, processors=[steer]) for prompt, _ in rotations_of(question)]
    turns = [engine.next_token_logprobs(request)[labels].double().numpy() for request in asked]
    return np.mean([np.roll(found, turn) for turn, found in enumerate(turns)], 0)


def _log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return np.log(values)
