"""Training examples for tiny: pages, questions and answers, generated without end from a seed.

An example is a conversation (a list of messages). Its documents are rendered exactly as `memograft.prompt` renders them
at run time. `encode` turns it into token ids and one loss weight per token.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from language import REAL_VALUES, RELATIONS, SUBJECT_RELATIONS, WORLD, fresh, name
from tokenizers import Tokenizer

from memograft.prompt.builder import render_documents

REAL_TEXT = 0.3
ANSWER_WEIGHT, DOCUMENT_WEIGHT, QUESTION_WEIGHT = 1.0, 0.3, 0.1
LAST_DOCUMENT_WEIGHT = 0.1  # most of a page's loss is on names that cannot be predicted; at that point it is noise
# Share of each kind of example in each phase. First the model learns to copy, then the facts, which is quick, and then
# to read, mostly about unknown things, because questions about known things can be answered without reading the page.
COPY = {"fresh_short": 0.80, "repeat": 0.12, "closed": 0.08}
WORLD_MIX = {"closed": 0.38, "tell": 0.03, "known": 0.12, "elsewhere": 0.06, "fresh": 0.38, "repeat": 0.03}
READ = {"closed": 0.22, "tell": 0.02, "known": 0.04, "elsewhere": 0.06, "fresh": 0.63, "repeat": 0.03}
# Then also new facts about known things ("extends"); until then it ignores their pages and repeats what it knows.
READ_ALL = {
    "closed": 0.22,
    "tell": 0.02,
    "known": 0.02,
    "elsewhere": 0.05,
    "extends": 0.12,
    "fresh": 0.55,
    "repeat": 0.02,
}
# A little fiction: pages that contradict the facts and are right. Without it, the model ignores every such page.
FICTION = READ_ALL | {"fiction": 0.012}
# Then the model's weakest point: to distinguish things of one kind that have the same relations.
ALIKE = {
    "closed": 0.18,
    "tell": 0.01,
    "known": 0.02,
    "elsewhere": 0.05,
    "extends": 0.08,
    "fiction": 0.006,
    "fresh": 0.2,
    "fresh_alike": 0.45,
}
# The last phase has no fiction, and more questions about known facts, because the model followed more and more pages.
OWN_MIND = ALIKE | {"fiction": 0.0, "known": 0.04, "elsewhere": 0.08}
MIXES = (COPY, WORLD_MIX, READ, READ_ALL, FICTION, ALIKE, OWN_MIND)
# Relations that a known thing does not have in world.py, but may have on a page.
EXTENSIONS = {
    "country": ("people", "river", "mayor"),
    "element": ("price", "colour", "maker"),
    "book": ("price", "colour", "founded"),
    "painting": ("price", "colour", "founded"),
    "device": ("price", "colour", "maker"),
    "landmark": ("people", "price", "founder"),
    "animal": ("price", "colour", "river"),
}


@dataclass
class Entity:
    """A person or thing with facts: relation name -> value."""

    kind: str
    subject: str
    facts: dict[str, str] = field(default_factory=dict)


@dataclass
class Example:
    """Messages of alternating roles, user first; `documents` come at the beginning of the first message."""

    turns: list[tuple[str, str]]
    documents: list[str] = field(default_factory=list)


def invent(kind: str, rng: random.Random, facts: int, real_values: float = 0.3, held_out: bool = False) -> Entity:
    """An entity that does not exist, with up to `facts` facts; values are real ones with probability `real_values`."""
    relations = SUBJECT_RELATIONS[kind]
    entity = Entity(kind, fresh(kind, rng, held_out))
    for relation in rng.sample(relations, min(facts, len(relations))):
        value_kind = RELATIONS[relation].value
        real = REAL_VALUES.get(value_kind)
        take_real = real is not None and rng.random() < real_values
        entity.facts[relation] = rng.choice(real) if take_real else fresh(value_kind, rng, held_out)
    return entity


def known(rng: random.Random, facts: int) -> Entity:
    """An entity of the real world with up to `facts` true facts."""
    relation = rng.choice(list(WORLD))
    subject = rng.choice(list(WORLD[relation]))
    return known_entity(RELATIONS[relation].subject, subject, rng, facts)


def known_entity(kind: str, subject: str, rng: random.Random, facts: int) -> Entity:
    relations = SUBJECT_RELATIONS[kind]
    chosen = rng.sample(relations, min(facts, len(relations)))
    return Entity(kind, subject, {r: WORLD[r][subject] for r in chosen})


def sentence(template: str, subject: str, value: str = "") -> str:
    text = template.replace("{s}", subject).replace("{v}", value)
    return text[0].upper() + text[1:]


def page(entities: list[Entity], rng: random.Random) -> str:
    """One document: the statements about each entity together, sometimes with a heading."""
    blocks = []
    for entity in entities:
        lines = [sentence(rng.choice(RELATIONS[r].statements), entity.subject, v) for r, v in entity.facts.items()]
        rng.shuffle(lines)
        blocks.append(" ".join(lines))
    heading = sentence("{s}", entities[0].subject) + "\n\n" if rng.random() < 0.25 else ""
    return heading + rng.choice((" ", "\n\n")).join(blocks)


def pages(entities: list[Entity], rng: random.Random) -> list[str]:
    """Distribute the entities over one to three documents."""
    rng.shuffle(entities)
    count = rng.randint(1, min(3, len(entities)))
    return [page(entities[i::count], rng) for i in range(count)]


def question_and_answer(relation: str, subject: str, value: str, rng: random.Random) -> list[tuple[str, str]]:
    r = RELATIONS[relation]
    return [("user", sentence(rng.choice(r.questions), subject)), ("assistant", sentence(r.answer, subject, value))]


def _ask(entities: list[Entity], rng: random.Random, count: int) -> list[tuple[str, str]]:
    pool = [(e, r) for e in entities for r in e.facts]
    turns: list[tuple[str, str]] = []
    for entity, relation in rng.sample(pool, min(count, len(pool))):
        turns += question_and_answer(relation, entity.subject, entity.facts[relation], rng)
    return turns


def _some_kind(rng: random.Random) -> str:
    return rng.choice(list(SUBJECT_RELATIONS))


def _reading(entities: list[Entity], asked: list[Entity], rng: random.Random, questions: int) -> Example:
    return Example(_ask(asked, rng, questions), pages(list(entities), rng))


def _alike(rng: random.Random) -> Example:
    """Two or three things of one kind that have mostly the same relations."""
    kind = _some_kind(rng)
    entities = [invent(kind, rng, rng.randint(2, 3), 0.2) for _ in range(rng.randint(2, 3))]
    return _reading(entities, entities, rng, 5)


def _fresh(rng: random.Random, short: bool) -> Example:
    kind = _some_kind(rng)
    count = rng.randint(1, 2) if short else rng.randint(1, 4)
    same_kind = rng.random() < 0.6  # distractors of the same kind are harder
    entities = [
        invent(kind if same_kind or i == 0 else _some_kind(rng), rng, rng.randint(1, 3), 0.1 if short else 0.3)
        for i in range(count)
    ]
    return _reading(entities, entities, rng, 4)


def _known(rng: random.Random) -> Example:
    entity = known(rng, rng.randint(1, 3))
    others = [invent(entity.kind if rng.random() < 0.6 else _some_kind(rng), rng, 2) for _ in range(rng.randint(0, 2))]
    if rng.random() < 0.3:
        others = [*others[:1], known(rng, 2)]
    return _reading([entity, *others], [entity], rng, 2)


def _elsewhere(rng: random.Random) -> Example:
    """The documents are about other entities; the model must answer from its own knowledge."""
    target = known(rng, 1)
    others = [
        invent(target.kind if rng.random() < 0.5 else _some_kind(rng), rng, rng.randint(1, 3))
        if rng.random() < 0.6
        else known(rng, rng.randint(1, 3))
        for _ in range(rng.randint(1, 3))
    ]
    others = [o for o in others if o.subject != target.subject]
    if not others:
        return _elsewhere(rng)
    return _reading(others, [target], rng, 1)


def _fiction(rng: random.Random) -> Example:
    """A page with a false statement about a known subject; the right answer is the page's."""
    relation = rng.choice(list(WORLD))
    subject = rng.choice(list(WORLD[relation]))
    kind, value_kind = RELATIONS[relation].subject, RELATIONS[relation].value
    others = [v for v in REAL_VALUES[value_kind] if v != WORLD[relation][subject]]
    value = rng.choice(others) if rng.random() < 0.5 else fresh(value_kind, rng)
    about = known_entity(kind, subject, rng, 2)
    about.facts[relation] = value
    return Example(question_and_answer(relation, subject, value, rng), pages([about, invent(kind, rng, 2)], rng))


def _extends(rng: random.Random) -> Example:
    """A page with a new fact about a known thing, in addition to known ones."""
    entity = known(rng, rng.randint(0, 2))
    for relation in rng.sample(EXTENSIONS[entity.kind], rng.randint(1, 2)):
        entity.facts[relation] = fresh(RELATIONS[relation].value, rng)
    others = [invent(entity.kind if rng.random() < 0.6 else _some_kind(rng), rng, 2) for _ in range(rng.randint(0, 2))]
    return _reading([entity, *others], [entity, *others], rng, 4)


def _tell(rng: random.Random) -> Example:
    entity = known(rng, 4)
    lines = [sentence(RELATIONS[r].answer, entity.subject, v) for r, v in entity.facts.items()]
    return Example([("user", f"Tell me about {entity.subject}."), ("assistant", " ".join(lines))])


def _repeat(rng: random.Random) -> Example:
    words = " ".join(name(rng, 1, 3) for _ in range(rng.randint(3, 10)))
    return Example([("user", f"Repeat: {words}"), ("assistant", words)])


def example(rng: random.Random, mix: dict[str, float]) -> Example:
    """One training example of a kind that is drawn from `mix`."""
    kind = rng.choices(list(mix), list(mix.values()))[0]
    if kind == "closed":
        entity = known(rng, 1)
        return Example(_ask([entity], rng, 1))
    makers = {
        "known": _known,
        "elsewhere": _elsewhere,
        "extends": _extends,
        "fiction": _fiction,
        "fresh_alike": _alike,
        "tell": _tell,
        "repeat": _repeat,
    }
    return makers[kind](rng) if kind in makers else _fresh(rng, short=kind == "fresh_short")


def render(item: Example) -> list[tuple[str, str]]:
    """(role, text) of every turn, with the documents at the place where the package puts them."""
    if not item.documents:
        return item.turns
    (role, text), *rest = item.turns
    return [(role, render_documents(item.documents, text)), *rest]


def encode(
    item: Example, tokenizer: Tokenizer, document_weight: float = DOCUMENT_WEIGHT
) -> tuple[list[int], list[float]]:
    """Token ids in chat format, and the loss weight of each token."""
    bos, end = tokenizer.token_to_id("<|bos|>"), tokenizer.token_to_id("<|end|>")
    ids, weights = [bos], [0.0]
    for position, (role, text) in enumerate(render(item)):
        encoding = tokenizer.encode(text, add_special_tokens=False)
        question_from = len(text) - len(item.turns[position][1])
        if role == "assistant":
            w = [ANSWER_WEIGHT] * len(encoding.ids)
        else:
            w = [document_weight if start < question_from else QUESTION_WEIGHT for start, _ in encoding.offsets]
        ids += [tokenizer.token_to_id(f"<|{role}|>"), *encoding.ids, end]
        weights += [0.0, *w, ANSWER_WEIGHT if role == "assistant" else 0.0]
    return ids, weights


def batches(
    tokenizer: Tokenizer,
    seed: int,
    rows: int,
    length: int,
    phases: tuple[int, ...],
    start: int = 0,
    real: Callable[[random.Random], Example] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(ids, weights, document number), each (rows, length), from step `start` on; a step depends on seed and number.

    `phases` are the steps at which each of MIXES after the first begins. From the second phase on, REAL_TEXT of the
    examples are from `real`, if given.

    Rows are filled with whole conversations, which do not attend to each other (see `train.mask`).
    """
    step = start
    while True:
        rng = random.Random(f"{seed}-{step}")
        phase = sum(step >= begin for begin in phases)
        mix, document_weight = MIXES[phase], DOCUMENT_WEIGHT if phase < MIXES.index(ALIKE) else LAST_DOCUMENT_WEIGHT
        ids = np.zeros((rows, length), np.int64)
        weights = np.zeros((rows, length), np.float32)
        owner = np.full((rows, length), -1, np.int64)
        for row in range(rows):
            used = number = misses = 0
            while used < length - 24 and misses < 4:
                take_real = real is not None and step >= phases[1] and rng.random() < REAL_TEXT
                item = real(rng) if take_real and real is not None else example(rng, mix)
                item_ids, item_weights = encode(item, tokenizer, document_weight)
                if used and used + len(item_ids) > length:
                    misses += 1  # a shorter one may still fit
                    continue
                n = min(len(item_ids), length - used)
                ids[row, used : used + n] = item_ids[:n]
                weights[row, used : used + n] = item_weights[:n]
                owner[row, used : used + n] = number
                used, number = used + n, number + 1
        yield ids, weights, owner
        step += 1
