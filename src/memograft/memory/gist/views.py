"""Ask the questions of a batch in three views: behind gists, with the documents in the prompt, and without either.

The last two are the controls of arXiv 2304.08467: "full" is the positive one, "none" the negative one.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import Cache

from memograft.errors import SettingsError
from memograft.memory.gist.compress import in_front, padded
from memograft.memory.gist.data import Asked, Batch
from memograft.model.backbone import Backbone, cache_name, unsupported
from memograft.model.kv import Piece, empty, joins, positions, reach
from memograft.model.prefill import run

__all__ = ["IGNORED", "VIEWS", "View", "answer_logits", "logits_behind", "right", "targets"]

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
    """(B, n, V) float32 logits at the places of `targets`, for the questions of a batch.

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
    count = max(len(row.answer) + row.asked * questions for row in rows)
    if view == "gist":
        assert gists is not None
        front = in_front(backbone, batch.opening, end - gists.x.shape[1])
        cache, seen = _behind(backbone, front, gists, [row.gists for row in rows])
        return logits_behind(backbone, texts, pad_id, count, cache, seen, torch.full_like(seen[:, :1], end))
    if shares:
        cache, seen = _pages(backbone, rows, pad_id)
        return logits_behind(backbone, texts, pad_id, count, cache, seen, seen.sum(1, keepdim=True))
    return logits_behind(backbone, texts, pad_id, count)


def logits_behind(
    backbone: Backbone,
    texts: Sequence[Sequence[int]],
    pad_id: int,
    count: int,
    cache: Cache | None = None,
    seen: Tensor | None = None,
    first: Tensor | None = None,
) -> Tensor:
    """(B, count, V) float32 logits of the last tokens of B texts, behind a cache with mask `seen` (B, C), or without.

    `first` (B, 1) are the positions of the texts' first tokens.

    Raises:
        UnsupportedModelError: the columns do not fit a sliding window.
    """
    ids, mask = padded(texts, pad_id, backbone.device)
    places = positions(mask)
    taken = inspect.signature(backbone.model.forward).parameters
    extra: dict[str, Any] = {"logits_to_keep": count} if "logits_to_keep" in taken else {}
    if cache is not None and seen is not None and first is not None:
        places, mask = places + first, torch.cat([seen, mask], 1)
        extra[cache_name(backbone.model.forward)] = cache
    shortest = reach(backbone)
    if shortest is not None and mask.shape[1] > shortest:
        # Padding in front of the texts would move the window.
        raise unsupported(
            f"a sliding window of {shortest} columns is shorter than a question's {mask.shape[1]} with what it sees",
            "train on fewer documents at a time, or shorter ones",
        )
    out = backbone.model(input_ids=ids, attention_mask=mask, position_ids=places, **extra)
    return out.logits[:, -count:].float()  # type: ignore[no-any-return]


def targets(asked: Sequence[Asked], device: torch.device, *, questions: bool = False) -> Tensor:
    """(B, n) answer tokens, with `questions` behind those of the question, aligned on the right; before them
    `IGNORED`."""
    rows = [(row.prompt[len(row.prompt) - row.asked :] if questions else ()) + row.answer for row in asked]
    count = max(map(len, rows))
    return torch.tensor([(IGNORED,) * (count - len(row)) + row for row in rows], device=device)


def right(logits: Tensor, targets: Tensor) -> int:
    """How many answers greedy decoding would give exactly, token by token."""
    return int(((logits.argmax(-1) == targets) | (targets == IGNORED)).all(1).sum())


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


def _behind(backbone: Backbone, front: Piece, gists: Piece, seen: Sequence[Sequence[int]]) -> tuple[Cache, Tensor]:
    """A cache with an opening and the gists that each row sees, padded with others that are masked; and its mask."""
    slots, k = max(map(len, seen)), gists.x.shape[1]
    index = torch.tensor([[0] * (slots - len(own)) + list(own) for own in seen])
    real = torch.tensor([[0] * (slots - len(own)) + [1] * len(own) for own in seen])
    cache = empty(backbone)
    for n, pair in enumerate(gists.layers):
        chosen = [tensor[index.to(tensor.device)] for tensor in pair]  # (B, slots, H, k, head dimension)
        own = [t.transpose(1, 2).flatten(2, 3) for t in chosen]
        before = [t.expand(len(seen), -1, -1, -1) for t in front.layers[n]]
        cache.update(*(torch.cat(pair, 2) for pair in zip(own, before, strict=True)), n)
    mask = torch.cat([real.repeat_interleave(k, 1), real.new_ones(len(seen), front.x.shape[1])], 1)
    return cache, mask.to(backbone.device)
