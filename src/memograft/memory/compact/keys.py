"""Compact the keys and values of a prompt's documents: which keys are kept in which layer and head, and their fit."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, pairwise

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from memograft.memory.base import Model, Task
from memograft.memory.compact.match import chosen, importance, matched, read_from
from memograft.memory.fastmem.rows import gather
from memograft.model.backbone import Backbone, unsupported
from memograft.model.carried import Carried, CarriedLayer
from memograft.model.int8 import Int8, blocks_of
from memograft.model.key_bias import Asked, asking, check_bias
from memograft.model.kv import Segment, empty, joins, positions, spread
from memograft.model.prefill import prefill_segment, run
from memograft.prompt.builder import Prompt

__all__ = ["asked_of", "blocks", "check", "compacted", "exact", "heads_of", "share_of", "tail_of"]

_QUERIES = 1024  # tokens whose queries are used for a block, at most
_BLOCK = 512  # columns that are matched together, at most, if there are more queries
_TOGETHER = 1 << 24  # numbers of the Gram matrices of layers whose keys are chosen together
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
    *,
    int8: bool = True,
) -> Carried:
    """Keep the keys from column `start` on in 1/ratio of their memory, over all layers and heads, and all before it.

    Args:
        backbone: the model.
        segment: the keys and values of C tokens.
        start: the first token of the context.
        ratio: the bytes of the keys and values are divided by this.
        tail: the tokens that lead from the context to an answer; see `asked_of`.
        task: it pauses between layers, and between parts of the pass.
        int8: round keys and values to 8 bits each, which leaves about twice as many; not if `ratio` is 1.

    Raises:
        RequestCancelledError: the task was given up.
        UnsupportedModelError: see `check`; or the model's queries cannot be observed.
    """
    check(backbone)
    layers, int8 = segment.kv_cache.layers, int8 and ratio > 1
    whole = [n for n, layer in enumerate(layers) if not layer.is_sliding]
    share, made = share_of([layers[n] for n in whole], ratio, int8=int8), list[CarriedLayer | tuple[Tensor, Tensor]]()
    if share < 1:
        asked = asked_of(backbone, segment, start, tail, task)
        every = sum(layers[n].keys.shape[1] for n in whole) * (segment.length - start)
        wanted = max(1, round(share * every))
        gains = _gains(layers, whole, asked, (start, segment.length), wanted, task)
        kept = dict(zip(whole, chosen(gains, wanted), strict=True))
    for n, layer in enumerate(layers):
        if n not in whole:
            made.append((layer.keys, layer.values))
            continue
        task.pause("compacted")
        own, keys, values, bias = _layer(layer, asked[n], kept[n], start) if share < 1 else _all_of(layer)
        if int8:
            made.append(CarriedLayer(own, Int8.of(keys), Int8.of(values), bias))
        else:
            made.append(CarriedLayer(own, keys, values, bias))
    return Carried(segment.ids, tuple(made))


def share_of(layers: Sequence[DynamicLayer], ratio: float, *, int8: bool) -> float:
    """The share of the keys that take, with their values and numbers, 1/ratio of the bytes of all."""
    whole = small = 0.0
    for layer in layers:
        heads, columns, width = layer.values.shape[1:]
        exact = 2 * width * layer.values.element_size()
        whole += heads * columns * (exact / ratio - 1 / 8)  # a bit says whether a key is kept
        small += heads * columns * (4 + (2 * (width + blocks_of(width)) if int8 else exact))
    return min(1.0, whole / small) if ratio > 1 else 1.0


def _gains(
    layers: Sequence[DynamicLayer],
    whole: Sequence[int],
    asked: Mapping[int, Asked],
    context: tuple[int, int],
    wanted: int,
    task: Task,
) -> list[Tensor]:
    """What each column of the context, from its start to its end, adds: (H, T) of each layer; see `importance`."""
    found = list[Tensor]()
    for group in _together(layers, whole, context[1] - context[0]):
        of_blocks = []
        for columns, rows in blocks(asked[group[0]].queries.shape[2], *context):
            heads = []
            for n in group:
                task.pause("compacted")
                size = float(layers[n].values.float().norm(dim=-1).mean())
                heads += [read_from(*head, columns, size) for head in heads_of(layers[n], asked[n], rows)]
            grams, reads = (torch.stack(parts) for parts in zip(*heads, strict=True))
            gains = importance(grams, reads, min(wanted, reads[..., 0].numel()))
            of_blocks.append(gains.view(len(group), -1, gains.shape[1]))
        found += torch.cat(of_blocks, 2)
    return found


@torch.no_grad()
def asked_of(
    backbone: Backbone, segment: Segment, start: int, tail: Sequence[int], task: Task = _NOW
) -> dict[int, Asked]:
    """The queries of each layer while the model is given the context as its own answer. Those of its tokens come last.

    They stand for those of later answers: behind the context comes the rest of a prompt with a question, by default one
    that says nothing ("?"), and then the context again. Queries of the first pass would be those of tokens that do not
    see what follows them.
    """
    text, room = segment.ids[start:], backbone.max_length - segment.length - len(tail)
    size, parts, is_text = max(1, min(room, _PASS)), list[dict[int, Asked]](), list[bool]()
    for first in range(0, len(text), size):
        cache, mask, _, _ = spread(backbone, [segment])
        ids = torch.tensor([[*tail, *text[first : first + size]]], device=backbone.device)
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
        is_text += [n >= len(tail) for n in range(ids.shape[1])]
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
    order = torch.tensor(is_text).argsort(stable=True)
    whole = {n: torch.cat([part[n].queries for part in parts], 2) for n in parts[0]}
    return {n: replace(parts[0][n], queries=queries[:, :, order.to(queries.device)]) for n, queries in whole.items()}


def blocks(queries: int, start: int, end: int) -> Iterator[tuple[slice, Tensor]]:
    """Columns of the context, which is from `start` to `end`, that are matched together, and the queries for them.

    The queries of a block's own tokens are always among them: heads that copy read a token there and nowhere else. The
    others are evenly spaced. So the work grows with the square of the context's length, as that of attention does, and
    not with its third power.
    """
    if queries <= _QUERIES:
        yield slice(start, end), torch.arange(queries)
        return
    text = end - start
    edges = torch.linspace(start, end, 1 + math.ceil(text / _BLOCK)).round().int().tolist()
    others = range(0, queries, math.ceil(queries / (_QUERIES - _BLOCK)))
    for first, last in pairwise(edges):
        own = range(queries - end + first, queries - end + last)
        yield slice(first, last), torch.tensor(sorted({*own, *others}))


def heads_of(layer: DynamicLayer, asked: Asked, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """For each head of keys: the scores of N queries for all C columns (N, C), and its values (C, d), float32.

    `rows` are the numbers of the tokens that ask.
    """
    queries = asked.queries[0][:, rows.to(asked.queries.device)]
    groups = queries.reshape(layer.keys.shape[1], -1, queries.shape[-1])  # the heads that share keys are neighbours
    for keys, values, own in zip(layer.keys[0], layer.values[0], groups, strict=True):
        scores = (own.float() * asked.scale) @ keys.float().T
        yield scores if asked.cap is None else torch.tanh(scores / asked.cap) * asked.cap, values.float()


def _together(layers: Sequence[DynamicLayer], whole: Sequence[int], columns: int) -> Iterator[list[int]]:
    """Layers whose keys are chosen together, which is faster than one by one: neighbours alike, and not too many."""
    for (heads, *_), alike in groupby(whole, lambda n: (*layers[n].values.shape[1::2], layers[n].values.device)):
        most = max(1, _TOGETHER // (heads * min(columns, _QUERIES) ** 2))
        own = list(alike)
        yield from (own[at : at + most] for at in range(0, len(own), most))


def _all_of(layer: DynamicLayer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    keys, values = layer.keys[0].flatten(0, 1), layer.values[0].flatten(0, 1)
    kept = torch.ones(layer.keys.shape[1:3], dtype=torch.bool, device=keys.device)
    return kept, keys, values, torch.zeros(len(keys), device=keys.device)


def _layer(layer: DynamicLayer, asked: Asked, kept: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which keys are kept (H, C), themselves and their values (n, d), and the numbers (n,); see `CarriedLayer`."""
    before = layer.values[0][:, :start].float()
    bias, values = [[own.new_zeros(start)] for own in before], [[own] for own in before]
    for columns, rows in blocks(asked.queries.shape[2], start, layer.keys.shape[2]):
        its = kept[:, columns.start - start : columns.stop - start]
        for n, (scores, own) in enumerate(heads_of(layer, asked, rows)):
            b, fitted = matched(scores, own, its[n], columns)
            bias[n].append(b)
            values[n].append(fitted)
    kept = torch.cat([kept.new_ones(len(kept), start), kept], 1)
    together = torch.cat([torch.cat(own) for own in values])
    return kept, layer.keys[0][kept], together.to(layer.values), torch.cat([torch.cat(own) for own in bias])
