"""Ask the questions of a batch in three views: behind gists, with the documents in the prompt, and without either.

The last two are the controls of arXiv 2304.08467: "full" is the positive one, "none" the negative one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import Cache

from memograft.errors import SettingsError
from memograft.memory.gist.compress import in_front, padded
from memograft.memory.gist.data import Asked, Batch
from memograft.model.backbone import Backbone, unsupported
from memograft.model.kv import Piece, empty, joins, positions, reach
from memograft.model.prefill import run

__all__ = [
    "IGNORED",
    "VIEWS",
    "View",
    "answer_logits",
    "answer_states",
    "logits_behind",
    "right",
    "targets",
    "with_opening",
]

Layers = Sequence[tuple[Tensor, Tensor]]  # keys and values
View = Literal["gist", "full", "none"]
VIEWS: tuple[View, ...] = ("gist", "full", "none")
IGNORED = -100  # cross_entropy's own default


def answer_logits(
    backbone: Backbone,
    batch: Batch,
    view: View,
    pad_id: int,
    gists: Piece | None = None,
    end: int = 0,
    *,
    questions: bool = False,
) -> Tensor:
    """(P, V) float32 logits at the P places of `targets` that are not `IGNORED`; arguments as of `answer_states`."""
    states = answer_states(backbone, batch, view, pad_id, gists, end, questions=questions)
    return backbone.logits(*states)[0]


def answer_states(
    backbone: Backbone,
    batch: Batch,
    view: View,
    pad_id: int,
    gists: Piece | None = None,
    end: int = 0,
    *,
    questions: bool = False,
) -> tuple[Tensor, Tensor]:
    """x and residual (1, P, D) at the P places of `targets` that are not `IGNORED`, for the questions of a batch.

    Args:
        backbone: the model.
        batch: the questions.
        view: what they see.
        pad_id: the padding token.
        gists: of the batch's documents, for the view "gist".
        end: position of the token that follows a gist: W + k.
        questions: whether the questions' own tokens are targets too.

    Raises:
        SettingsError: a question with what it sees is longer than the model's window.
        UnsupportedModelError: gists and question together do not fit a sliding window.
    """
    rows = batch.asked
    shares = view == "full" and joins(backbone) and reach(backbone) is None and all(row.page for row in rows)
    spared = batch.opening.spared * (view == "gist")
    texts = [
        (row.full[row.page * shares :] if view == "full" else row.prompt[spared:]) + row.answer[:-1] for row in rows
    ]
    before = [end if view == "gist" else row.page * shares for row in rows]
    if (last := max(first + len(text) for first, text in zip(before, texts, strict=True))) > backbone.max_length:
        raise SettingsError(
            f"documents, question and answer must fit the model's window of {backbone.max_length} positions, got "
            f"{last}; leave out the longest samples, or train with a smaller `window`"
        )
    goal = targets(rows, backbone.device, questions=questions)
    if view == "gist":
        assert gists is not None
        front = in_front(backbone, batch.opening, end - gists.x.shape[1])
        own, seen = _chosen(gists, [row.gists for row in rows])
        return _states_behind(backbone, texts, pad_id, goal, *with_opening(backbone, front, own, seen), end)
    if shares:
        cache, seen = _pages(backbone, rows, pad_id)
        return _states_behind(backbone, texts, pad_id, goal, cache, seen)
    return _states_behind(backbone, texts, pad_id, goal)


def logits_behind(
    backbone: Backbone,
    texts: Sequence[Sequence[int]],
    pad_id: int,
    goal: Tensor,
    cache: Cache | None = None,
    seen: Tensor | None = None,
    end: int | None = None,
) -> Tensor:
    """(P, V) float32 logits of the last tokens of B texts, behind a cache with mask `seen` (B, C), or without.

    P is the number of places in `goal` (B, n), aligned on the right, that are not `IGNORED`: no other is given to the
    head, which is the most expensive map. `end` is the position of the texts' first tokens; None if it is the number of
    columns that they see.

    Raises:
        UnsupportedModelError: the columns do not fit a sliding window.
    """
    return backbone.logits(*_states_behind(backbone, texts, pad_id, goal, cache, seen, end))[0]


def _states_behind(
    backbone: Backbone,
    texts: Sequence[Sequence[int]],
    pad_id: int,
    goal: Tensor,
    cache: Cache | None = None,
    seen: Tensor | None = None,
    end: int | None = None,
) -> tuple[Tensor, Tensor]:
    ids, mask = padded(texts, pad_id, backbone.device)
    places = positions(mask)
    if cache is not None and seen is not None:
        places = places + (seen.sum(1, keepdim=True) if end is None else end)
        mask = torch.cat([seen, mask], 1)
    shortest = reach(backbone)
    if shortest is not None and mask.shape[1] > shortest:
        # Padding in front of the texts would move the window.
        raise unsupported(
            f"a sliding window of {shortest} columns is shorter than a question's {mask.shape[1]} with what it sees",
            "train on fewer documents at a time, or shorter ones",
        )
    x, residual, _ = run(backbone, ids, mask, cache, places)
    places = goal != IGNORED
    return x[:, -goal.shape[1] :][places][None], residual[:, -goal.shape[1] :][places][None]


def targets(asked: Sequence[Asked], device: torch.device, *, questions: bool = False) -> Tensor:
    """(B, n) answer tokens, with `questions` behind those of the question, aligned on the right; before them
    `IGNORED`."""
    rows = [(row.prompt[len(row.prompt) - row.asked :] if questions else ()) + row.answer for row in asked]
    count = max(map(len, rows))
    return torch.tensor([(IGNORED,) * (count - len(row)) + row for row in rows], device=device)


def right(logits: Tensor, targets: Tensor) -> int:
    """How many answers greedy decoding would give exactly, token by token; (P, V) as in `logits_behind`."""
    same = torch.ones_like(targets, dtype=torch.bool)
    same[targets != IGNORED] = logits.argmax(-1) == targets[targets != IGNORED]
    return int(same.all(1).sum())


@torch.no_grad()
def _pages(backbone: Backbone, rows: Sequence[Asked], pad_id: int) -> tuple[Cache, Tensor]:
    """A cache with the documents of each row's full prompt, which are run once for all rows that have the same, and its
    mask."""
    pages = list(dict.fromkeys(row.full[: row.page] for row in rows))
    ids, mask = padded(pages, pad_id, backbone.device)
    cache = run(backbone, ids, mask, None, positions(mask))[-1]
    index = torch.tensor([pages.index(row.full[: row.page]) for row in rows])  # a device map may spread the cache
    cache.batch_select_indices(index)
    return cache, mask[index]


def with_opening(backbone: Backbone, front: Piece, own: Layers, seen: Tensor) -> tuple[Cache, Tensor]:
    """A cache with an opening and keys and values of B rows, (B, H, C, head dimension) in each layer; and its mask.

    `seen` (B, C) is 1 for columns that a row attends to, all of them in the opening. The opening comes last in the
    cache; positions tell the order.
    """
    cache, rows = empty(backbone), len(seen)
    for n, (pair, before) in enumerate(zip(own, front.layers, strict=True)):
        both = zip(pair, before, strict=True)
        cache.update(*(torch.cat([t, b.expand(rows, -1, -1, -1)], 2) for t, b in both), n)
    mask = torch.cat([seen, seen.new_ones(rows, front.x.shape[1])], 1)
    return cache, mask.to(backbone.device)


def _chosen(gists: Piece, seen: Sequence[Sequence[int]]) -> tuple[Layers, Tensor]:
    """The gists that each row sees, side by side, padded with others; and which are its own."""
    slots, k = max(map(len, seen)), gists.x.shape[1]
    index = torch.tensor([[0] * (slots - len(own)) + list(own) for own in seen])
    real = torch.tensor([[0] * (slots - len(own)) + [1] * len(own) for own in seen])
    layers = []
    for keys, values in gists.layers:
        own = [t[index.to(t.device)].transpose(1, 2).flatten(2, 3) for t in (keys, values)]  # of (B, slots, H, k, d)
        layers.append((own[0], own[1]))
    return layers, real.repeat_interleave(k, 1)
