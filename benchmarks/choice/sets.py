"""Multiple-choice questions for `rtd_choice.py`: OpenBookQA, ARC-Easy, and two sets about the facts that "tiny" knows.

"world facts": a fact of the bundled questions, with three other values of its relation. "world kinds": what kind of
thing a name of these facts is, a question that is not in tiny's training. Each fact and each name is in one split only.
"""

from __future__ import annotations

import json
import lzma
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memograft.evaluation.items import SPLITS, world

# relation: (kind of its subject, kind of its value, wording of the question)
RELATIONS = {
    "capital": (
        "a country",
        "a city",
        "What is the capital of S?|Which city is the capital of S?|Name the capital of S.",
    ),
    "currency": (
        "a country",
        "a currency",
        "What is the currency of S?|Which currency is used in S?|What do people pay with in S?",
    ),
    "language": (
        "a country",
        "a language",
        "What is the main language of S?|Which language is spoken in S?|What do people speak in S?",
    ),
    "continent": (
        "a country",
        "a continent",
        "On which continent is S?|Which continent does S belong to?|Where does S lie?",
    ),
    "symbol": (
        "an element",
        "",
        "What is the chemical symbol of S?|How do chemists write S?|Which symbol stands for S?",
    ),
    "number": (
        "an element",
        "",
        "What is the atomic number of S?|Which atomic number does S have?|At which number does S stand?",
    ),
    "author": ("a book", "a person", "Who is the author of S?|Who wrote S?|By whom was S written?"),
    "painter": ("a painting", "a person", "Who is the painter of S?|Who painted S?|By whom was S painted?"),
    "inventor": ("an invention", "a person", "Who is the inventor of S?|Who invented S?|By whom was S invented?"),
    "city": ("a building", "a city", "In which city is S?|Where does S stand?|Where can S be visited?"),
    "young": (
        "an animal",
        "",
        "What is a young S called?|What do people call a baby S?|What is the young of the S?",
    ),
}
_MCQA = re.compile(
    r"Please choose the correct answer to the question: (.*?)\s*\n\nAnswer1: (.*)\n\nAnswer format: .*", re.S
)


@dataclass(frozen=True)
class Question:
    """A question, the answers to choose from, and the position of the right one."""

    id: str
    text: str
    options: tuple[str, ...]
    right: int

    @property
    def answer(self) -> str:
        return self.options[self.right]


@dataclass(frozen=True)
class Questions:
    """A question set, in three splits.

    Attributes:
        name: of the set.
        train: for datastores and shots; at least as many as a datastore takes.
        tune: for choosing settings; none of `train`.
        test: for the reported results; none of the other two.
        left_out: number of questions that cannot be asked because two of their options are equal.
    """

    name: str
    train: tuple[Question, ...]
    tune: tuple[Question, ...]
    test: tuple[Question, ...]
    left_out: int = 0


def mcqa(folder: Path, file: str, name: str, n: int, tune: int) -> Questions:
    """The set in `file`-train.json.xz and `file`-test.json.xz: `n` of its test, `tune` of its train questions."""
    found, left_out = {}, 0
    for split in ("train", "test"):
        path = folder / f"{file}-{split}.json.xz"
        if not path.is_file():
            raise SystemExit(f"{path} is missing: --data must be the folder with {file}-train.json.xz and its like")
        with lzma.open(path, "rt", encoding="utf-8") as stream:
            all_of_it = [_parsed(f"{split}-{number}", item) for number, item in enumerate(json.load(stream))]
        found[split] = [question for question in all_of_it if len(set(question.options)) == len(question.options)]
        left_out += len(all_of_it) - len(found[split])
    random.Random(0).shuffle(found["train"])
    test = random.Random(0).sample(found["test"], min(n, len(found["test"])))
    return Questions(name, tuple(found["train"][tune:]), tuple(found["train"][:tune]), tuple(test), left_out)


def world_facts(n: int, tune: int) -> Questions:
    """Each fact once, in one of the wordings of the bundled questions."""
    rng, asked = random.Random(0), _facts()
    values = {relation: sorted({value for r, _, value in asked if r == relation}) for relation in RELATIONS}
    questions = []
    for (relation, subject, value), wordings in sorted(asked.items()):
        others = rng.sample([other for other in values[relation] if other != value], 3)
        questions.append(_mixed(f"{relation}-{subject}", rng.choice(wordings), value, others, rng))
    return _split("world facts", questions, n, tune, rng)


def world_kinds(n: int, tune: int) -> Questions:
    """The kind of each subject and each value of the facts, except symbols, numbers and the young of animals."""
    rng, kinds = random.Random(0), dict[str, set[str]]()
    for relation, subject, value in _facts():
        for name, kind in zip((subject, value), RELATIONS[relation][:2], strict=True):
            kinds.setdefault(name, set()).add(kind)
    known = {name: next(iter(kind)) for name, kind in sorted(kinds.items()) if len(kind) == 1 and "" not in kind}
    every = sorted(set(known.values()))
    questions = [
        _mixed(name, f"What kind of thing is {name}?", kind, rng.sample([k for k in every if k != kind], 3), rng)
        for name, kind in known.items()
    ]
    return _split("world kinds", questions, n, tune, rng)


def _facts() -> dict[tuple[str, str, str], list[str]]:
    """(relation, subject, value) -> the bundled questions that ask for it."""
    shapes = [
        (relation, re.compile("(.+)".join(map(re.escape, re.split(r"\bS\b", wording)))))
        for relation, (_, _, wordings) in RELATIONS.items()
        for wording in wordings.split("|")
    ]
    found: dict[tuple[str, str, str], set[str]] = {}
    for item in (item for split in SPLITS for item in world(split) if item.set in ("agrees", "elsewhere")):
        (fact,) = {(r, m[1], item.answers[0]) for r, shape in shapes if (m := shape.fullmatch(item.question))}
        found.setdefault(fact, set()).add(item.question)
    return {fact: sorted(wordings) for fact, wordings in found.items()}


def _parsed(id: str, item: dict[str, str]) -> Question:
    match = _MCQA.fullmatch(item["instruction"])
    assert match is not None, f"not a question as the others are: {item['instruction']!r}"
    options = tuple(option.strip() for option in re.split(r"\s*Answer\d: ", match[2]))
    return Question(id, match[1].strip(), options, int(item["answer"].removeprefix("answer")) - 1)


def _mixed(id: str, text: str, answer: str, others: Sequence[str], rng: random.Random) -> Question:
    options = [answer, *others]
    rng.shuffle(options)
    return Question(id, text, tuple(options), options.index(answer))


def _split(name: str, questions: list[Question], n: int, tune: int, rng: random.Random) -> Questions:
    """At most `n` and half of the questions for the test, at most `tune` and an eighth for tuning."""
    rng.shuffle(questions)
    test = min(n, len(questions) // 2)
    tuned = test + min(tune, len(questions) // 8)
    return Questions(name, tuple(questions[tuned:]), tuple(questions[test:tuned]), tuple(questions[:test]))
