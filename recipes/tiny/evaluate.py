"""Quick scores while training: is every token of the answer the most probable one, given the right ones before it?

That equals greedy decoding giving exactly the expected sentence, at the cost of one forward pass per batch.
"""

from __future__ import annotations

import random

import torch
from data import Entity, Example, encode, invent, known_entity, pages, question_and_answer
from language import REAL_VALUES, RELATIONS, SUBJECT_RELATIONS, WORLD, fresh
from tokenizers import Tokenizer


def closed_book(rng: random.Random) -> Example:
    relation = rng.choice(list(WORLD))
    subject = rng.choice(list(WORLD[relation]))
    return Example(question_and_answer(relation, subject, WORLD[relation][subject], rng))


def unseen(rng: random.Random) -> Example:
    """Entities, and values where their kind is open, that no training page has named."""
    kind = rng.choice(list(SUBJECT_RELATIONS))
    entities = [invent(kind, rng, 3, 0.0, held_out=True) for _ in range(2)]
    relation = rng.choice(list(entities[0].facts))
    turns = question_and_answer(relation, entities[0].subject, entities[0].facts[relation], rng)
    return Example(turns, pages(list(entities), rng))


def about_known(rng: random.Random, contradicts: bool) -> Example:
    """A page about somebody tiny knows, right or with one value that contradicts what tiny knows."""
    relation = rng.choice(list(WORLD))
    subject = rng.choice(list(WORLD[relation]))
    kind = RELATIONS[relation].subject
    entity = known_entity(kind, subject, rng, 2)
    value = WORLD[relation][subject]
    if contradicts:
        value_kind = RELATIONS[relation].value
        others = [v for v in REAL_VALUES[value_kind] if v != value]
        value = rng.choice(others) if rng.random() < 0.5 else fresh(value_kind, rng, held_out=True)
    entity = Entity(kind, subject, {**entity.facts, relation: value})
    turns = question_and_answer(relation, subject, value, rng)
    return Example(turns, pages([entity, invent(kind, rng, 2)], rng))


@torch.no_grad()
def teacher_forced(model: torch.nn.Module, tokenizer: Tokenizer, n: int, seed: int = 10**6) -> dict[str, float]:
    """Share of `n` answers that greedy decoding gives exactly, per set."""
    makers = {
        "closed": closed_book,
        "unseen": unseen,
        "agrees": lambda r: about_known(r, False),
        "contradicts": lambda r: about_known(r, True),
    }
    scores = {}
    for name, make in makers.items():
        rng = random.Random(f"{name}-{seed}")
        right = 0
        for _ in range(n // 32):
            rows = [encode(make(rng), tokenizer) for _ in range(32)]
            width = max(len(ids) for ids, _ in rows)
            ids = torch.zeros(32, width, dtype=torch.long)
            answer = torch.zeros(32, width, dtype=torch.bool)
            for row, (row_ids, weights) in enumerate(rows):
                ids[row, : len(row_ids)] = torch.tensor(row_ids)
                answer[row, : len(row_ids)] = torch.tensor([w == 1.0 for w in weights])
            ids, answer = ids.to(model.device), answer.to(model.device)
            best = model(input_ids=ids, use_cache=False).logits[:, :-1].argmax(-1)
            right += int(((best == ids[:, 1:]) | ~answer[:, 1:]).all(dim=1).sum())
        scores[name] = round(right / (n // 32 * 32), 3)
    return scores
