"""Held-out questions about tiny's world, in the four situations a retrieved page can be in.

    contradicts  the page says something else than tiny knows; right is what the page says
    agrees       the page says what tiny knows
    unseen       the page is about entities no training text has named; right is what the page says
    elsewhere    the page is about something else; right is what tiny knows

Every page also holds facts that are not asked for, and every item depends on its seed and number alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from data import Entity, invent, known_entity, pages, question_and_answer
from language import CLOSED_KINDS, REAL_VALUES, RELATIONS, SUBJECT_RELATIONS, WORLD, fresh

SETS = ("contradicts", "agrees", "unseen", "elsewhere")


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        question: in one of the relation's wordings.
        documents: pages, in retrieval order.
        right: the value a right answer contains.
        belief: what tiny knows, "" for unseen entities.
        answer: the whole sentence tiny would say.
        kind: "real" or "made-up" or "closed" (one of a short list), of the right value.
    """

    id: str
    set: str
    relation: str
    question: str
    documents: tuple[str, ...]
    right: str
    belief: str
    answer: str
    kind: str


def items(which: str, count: int, seed: str) -> list[Item]:
    """`count` items of one set; `seed` names the split ("tune", "test")."""
    return [_item(which, f"{seed}-{which}-{n}") for n in range(count)]


def _item(which: str, id: str) -> Item:
    rng = random.Random(id)
    if which == "unseen":
        return _unseen(id, rng)
    relation = rng.choice(list(WORLD))
    subject = rng.choice(list(WORLD[relation]))
    belief = WORLD[relation][subject]
    kind = RELATIONS[relation].subject
    right = belief
    if which == "elsewhere":
        others = [known_entity(kind, rng.choice([s for s in WORLD[relation] if s != subject]), rng, 2)]
        others.append(invent(rng.choice(list(SUBJECT_RELATIONS)), rng, 3, 0.0, held_out=True))
        documents = pages(others, rng)
    else:
        if which == "contradicts":
            right = _another(relation, belief, rng)
        about = Entity(kind, subject, {**known_entity(kind, subject, rng, 2).facts, relation: right})
        documents = pages([about, invent(kind, rng, 2, 0.0, held_out=True)], rng)
    return _made(id, which, relation, subject, documents, right, belief, rng)


def _unseen(id: str, rng: random.Random) -> Item:
    kind = rng.choice(list(SUBJECT_RELATIONS))
    entities = [invent(kind, rng, 3, 0.0, held_out=True) for _ in range(2)]
    relation, right = rng.choice(list(entities[0].facts.items()))
    subject = entities[0].subject
    return _made(id, "unseen", relation, subject, pages(list(entities), rng), right, "", rng)


def _another(relation: str, belief: str, rng: random.Random) -> str:
    """Another value of the same kind: half of the time a real one, else a made-up one."""
    kind = RELATIONS[relation].value
    if kind in CLOSED_KINDS or rng.random() < 0.5:
        return rng.choice(sorted({v for v in REAL_VALUES[kind] if v != belief}))
    return fresh(kind, rng, held_out=True)


def _made(
    id: str, which: str, relation: str, subject: str, documents: list[str], right: str, belief: str, rng: random.Random
) -> Item:
    (_, question), (_, answer) = question_and_answer(relation, subject, right, rng)
    value_kind = RELATIONS[relation].value
    kind = "closed" if value_kind in CLOSED_KINDS else "real" if right in REAL_VALUES.get(value_kind, ()) else "made-up"
    return Item(id, which, relation, question, tuple(documents), right, belief, answer, kind)
