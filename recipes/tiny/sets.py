"""Held-out questions about tiny's facts, for different relations between question and retrieved pages.

    contradicts  the page contradicts a fact that tiny knows; the page is right
    agrees       the page states what tiny knows
    unseen       the page is about entities that are not in the training text; the page is right
    elsewhere    the page is about something else; tiny's own answer is right
    one of five  five pages about five things, in random order; one is asked for, and contradicts what tiny knows
    disagree     two pages about one thing that contradict tiny and each other; the first one is right
    repeats      two pages about one thing that contradict tiny and state the same in different words
    beside       the page is about the subject, but does not have the answer; tiny's own answer is right

Nearly every page also has facts that are not asked for. Every item depends only on its seed and number.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from data import EXTENSIONS, Entity, invent, known, known_entity, page, pages, question_and_answer, sentence
from language import CLOSED_KINDS, REAL_VALUES, RELATIONS, SUBJECT_RELATIONS, WORLD, fresh

SETS = ("contradicts", "agrees", "unseen", "elsewhere", "one of five", "disagree", "repeats", "beside")
# The words of every answer sentence, one sentence per line: what an answer contains besides subject and value.
FRAME = "\n".join(r.answer.replace("{s}", "").replace("{v}", "") for r in RELATIONS.values())


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        question: in one of the relation's wordings.
        documents: pages, in retrieval order.
        right: the value that a right answer contains.
        belief: what tiny knows, "" for unseen entities.
        answer: the complete answer sentence.
        kind: "real" or "made-up" or "closed" (one of a short list), of the right value.
        other: the value on the second page ("disagree"), else "".
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
    other: str = ""


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
    right, other = belief, ""
    if which == "elsewhere":
        others = [known_entity(kind, rng.choice([s for s in WORLD[relation] if s != subject]), rng, 2)]
        others.append(invent(rng.choice(list(SUBJECT_RELATIONS)), rng, 3, 0.0, held_out=True))
        documents = pages(others, rng)
    elif which == "one of five":
        right = _another(relation, belief, rng)
        documents = _one_of_five(relation, subject, right, rng)
    elif which in ("disagree", "repeats"):
        right = _another(relation, belief, rng)
        while which == "disagree" and other in ("", right):
            other = _another(relation, belief, rng)
        wordings = rng.sample(RELATIONS[relation].statements, 2)
        values = (right, other or right)
        documents = [_about(relation, subject, v, w, rng) for v, w in zip(values, wordings, strict=True)]
    elif which == "beside":
        documents = pages([_without(relation, subject, rng), invent(kind, rng, 2, 0.0, held_out=True)], rng)
    else:
        if which == "contradicts":
            right = _another(relation, belief, rng)
        about = Entity(kind, subject, {**known_entity(kind, subject, rng, 2).facts, relation: right})
        documents = pages([about, invent(kind, rng, 2, 0.0, held_out=True)], rng)
    return replace(_made(id, which, relation, subject, documents, right, belief, rng), other=other)


def _one_of_five(relation: str, subject: str, value: str, rng: random.Random) -> list[str]:
    """Short pages about five different things, one of which is asked for; half of the others have its kind."""
    kind = RELATIONS[relation].subject
    entities = {subject: Entity(kind, subject, {**known_entity(kind, subject, rng, 1).facts, relation: value})}
    while len(entities) < 5:
        alike, facts = rng.random() < 0.5, rng.randint(1, 2)
        if rng.random() < 0.5:
            other = known_entity(kind, rng.choice(list(WORLD[relation])), rng, facts) if alike else known(rng, facts)
        else:
            other = invent(kind if alike else rng.choice(list(SUBJECT_RELATIONS)), rng, facts, 0.0, held_out=True)
        entities.setdefault(other.subject, other)
    documents = [page([entity], rng) for entity in entities.values()]
    rng.shuffle(documents)
    return documents


def _about(relation: str, subject: str, value: str, wording: str, rng: random.Random) -> str:
    """A page that states the fact in this wording, with true facts and sometimes another thing of its kind."""
    kind = RELATIONS[relation].subject
    facts = {r: v for r, v in known_entity(kind, subject, rng, rng.randint(0, 2)).facts.items() if r != relation}
    lines = [sentence(rng.choice(RELATIONS[r].statements), subject, v) for r, v in facts.items()]
    lines.append(sentence(wording, subject, value))
    rng.shuffle(lines)
    beside = page([invent(kind, rng, 2, 0.0, held_out=True)], rng) if rng.random() < 0.5 else ""
    return " ".join(lines) + ("\n\n" + beside if beside else "")


def _without(relation: str, subject: str, rng: random.Random) -> Entity:
    """The subject with known facts except the one asked for, and one fact that only this page has."""
    kind = RELATIONS[relation].subject
    new = rng.choice(EXTENSIONS[kind])
    facts = {r: v for r, v in known_entity(kind, subject, rng, 2).facts.items() if r != relation}
    return Entity(kind, subject, facts | {new: fresh(RELATIONS[new].value, rng, held_out=True)})


def _unseen(id: str, rng: random.Random) -> Item:
    kind = rng.choice(list(SUBJECT_RELATIONS))
    entities = [invent(kind, rng, 3, 0.0, held_out=True) for _ in range(2)]
    relation, right = rng.choice(list(entities[0].facts.items()))
    subject = entities[0].subject
    return _made(id, "unseen", relation, subject, pages(list(entities), rng), right, "", rng)


def _another(relation: str, belief: str, rng: random.Random) -> str:
    """Another value of the same kind: half of the time a real one, else a generated one."""
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
