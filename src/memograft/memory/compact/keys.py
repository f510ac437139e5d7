"""Compact the keys and values of a prompt's documents: which keys are kept in which layer and head, and their fit."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from memograft.memory.base import Model, Task
from memograft.memory.compact.match import chosen, importance, matched, read_from
from memograft.memory.fastmem.rows import gather
from memograft.model.backbone import Backbone, unsupported
from memograft.model.carried import Carried, CarriedLayer
from memograft.model.key_bias import Asked, asking, check_bias
from memograft.model.kv import Segment, empty, joins, positions, spread
from memograft.model.prefill import prefill_segment, run
from memograft.prompt.builder import Prompt

__all__ = ["asked_of", "check", "compacted", "exact", "heads_of", "tail_of"]

_QUERIES = 1024  # tokens whose queries are used, at most; they are evenly spaced
_PASS = 2048  # tokens of the context in one pass
_NOW = Task()  # nobody waits


def exact(model: Model, prompt: Prompt, task: Task = _NOW) -> Segment | None:
    """Keys and values of a prompt up to the end of its documents; from the bank if possible."""
    ids, known = gather(prompt), model.recalled(prompt)
    if known is not None and known.ids == ids:
        return known
    return replace(prefill_segment(model.backbone, ids, task.pace, task.given_up), read=len(ids)) if ids else None


def tail_of(model: Model, prompt: Prompt, questions: Sequence[str]) -> tuple[int, ...]:
    """The tokens that lead from a prompt's documents to an answer, once for each question."""
    found: list[int] = []
    for question in questions:
        asked = model.prompts.build([{"role": "user", "content": question}], prompt.documents)
        found += asked.ids[len(gather(asked)) :]
    return tuple(found)


def check(backbone: Backbone) -> None:
    """Refuse a model before anything is computed.

    Raises:
        UnsupportedModelError: its attention takes no mask for each head; or it caches more than keys and values, or
            those of sliding windows only.
    """
    if not joins(backbone) or all(layer.is_sliding for layer in empty(backbone).layers):
        raise unsupported(
            f"{type(backbone.model).__name__} caches more than keys and values, or only those in a sliding window, so "
            "there is nothing to compact",
            "use Kept()",
        )
    check_bias(backbone)


@torch.no_grad()
def compacted(
    backbone: Backbone,
    segment: Segment,
    start: int,
    ratio: float,
    tail: Sequence[int],
    task: Task = _NOW,
) -> Carried:
    """Keep 1/ratio of the keys from column `start` on, on average over all layers and heads, and all before it.

    Args:
        backbone: the model.
        segment: the keys and values of C tokens.
        start: the first token of the context.
        ratio: the number of keys is divided by this.
        tail: the tokens that lead from the context to an answer; see `asked_of`.
        task: it pauses between layers, and between parts of the pass.

    Raises:
        RequestCancelledError: the task was given up.
        UnsupportedModelError: see `check`; or the model's queries cannot be observed.
    """
    check(backbone)
    asked, layers = asked_of(backbone, segment, start, tail, task), segment.kv_cache.layers
    whole = [n for n, layer in enumerate(layers) if not layer.is_sliding]
    found = []
    for n in whole:
        task.pause("compacted")
        size = float(layers[n].values.float().norm(dim=-1).mean())
        heads = [read_from(scores, values, start, size) for scores, values in heads_of(layers[n], asked[n])]
        found.append(importance(*(torch.stack(parts) for parts in zip(*heads, strict=True))))
    kept = dict(zip(whole, chosen(found, ratio), strict=True))
    made: list[CarriedLayer | tuple[Tensor, Tensor]] = []
    for n, layer in enumerate(layers):
        task.pause("compacted")
        made.append(_layer(layer, asked[n], kept[n], start) if n in kept else (layer.keys, layer.values))
    return Carried(segment.ids, tuple(made))


@torch.no_grad()
def asked_of(
    backbone: Backbone, segment: Segment, start: int, tail: Sequence[int], task: Task = _NOW
) -> dict[int, Asked]:
    """The queries of each layer while the model is given the context as its own answer.

    They stand for those of later answers: behind the context comes the rest of a prompt with a question, by default one
    that says nothing ("?"), and then the context again. Queries of the first pass would be those of tokens that do not
    see what follows them.
    """
    text, room = segment.ids[start:], backbone.max_length - segment.length - len(tail)
    size, parts = max(1, min(room, _PASS)), list[dict[int, Asked]]()
    for first in range(0, len(text), size):
        cache, mask, _, _ = spread(backbone, [segment])
        ids = torch.tensor([[*tail, *text[first : first + size]]], device=backbone.device)
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
        places, at = positions(mask)[:, segment.length :], 0
        while at < ids.shape[1]:
            end = ids.shape[1] if task.pace is None else at + task.pace.columns(1)
            begun = time.monotonic()
            with asking(backbone) as asked:  # not while others use the model
                run(backbone, ids[:, at:end], mask[:, : segment.length + end], cache, places[:, at:end])
            if task.pace is not None:
                task.pace.ran(min(end, ids.shape[1]) - at, time.monotonic() - begun)
            parts.append(asked)
            task.pause("compacted")
            at = end
    whole = {n: torch.cat([part[n].queries for part in parts], 2) for n in parts[0]}
    return {n: replace(parts[0][n], queries=queries) for n, queries in whole.items()}


def heads_of(layer: DynamicLayer, asked: Asked) -> Iterator[tuple[Tensor, Tensor]]:
    """For each head of keys: the scores of its queries for all C columns (N, C), and its values (C, d), float32."""
    queries = asked.queries[0, :, :: -(-asked.queries.shape[2] // _QUERIES)]
    groups = queries.reshape(layer.keys.shape[1], -1, queries.shape[-1])  # the heads that share keys are neighbours
    for keys, values, own in zip(layer.keys[0], layer.values[0], groups, strict=True):
        scores = own.float() @ keys.float().T * asked.scale
        yield scores if asked.cap is None else torch.tanh(scores / asked.cap) * asked.cap, values.float()


def _layer(layer: DynamicLayer, asked: Asked, kept: Tensor, start: int) -> CarriedLayer:
    before = kept.new_ones(len(kept), start)
    bias, values = [], []
    for (scores, own), its in zip(heads_of(layer, asked), kept, strict=True):
        b, fitted = matched(scores, own, its, start)
        bias += [b.new_zeros(start), b]
        values += [own[:start], fitted]
    kept = torch.cat([before, kept], 1)
    return CarriedLayer(kept, layer.keys[0][kept], torch.cat(values).to(layer.values), torch.cat(bias))
