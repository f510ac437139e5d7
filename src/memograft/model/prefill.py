"""Prefill: one pass over the prompts, for their keys and values and for the rows that memorizing trains on.

Nothing here depends on the last FFN, so the result is valid for any mix of memories. The last prompt token is kept
apart; where that is not possible, the first decoding step runs it.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from memograft.errors import RequestCancelledError, SettingsError, UnsupportedModelError
from memograft.model.backbone import Backbone, cache_name, cache_of, unsupported
from memograft.model.key_bias import biased, most_tokens
from memograft.model.kv import (
    Piece,
    Prefill,
    Segment,
    can_join,
    close,
    join,
    joins,
    newest,
    nothing,
    pairs,
    picked,
    positions,
    reach,
    spread,
    whole,
    window,
)

__all__ = ["Pace", "prefill", "prefill_behind", "prefill_beside", "prefill_piece", "prefill_segment", "run"]

_PADDING = 256  # tokens of padding that cost about as much as one more pass
_FEWEST = 32  # tokens of a pass: shorter ones would take almost as long


class Pace:
    """How many tokens a pass may have so that it takes a given time, from the time that earlier passes took."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._rate = seconds, 0.0

    @property
    def tokens(self) -> int:
        """Tokens of the next pass."""
        return max(_FEWEST, int(self._rate * self._seconds))

    def columns(self, rows: int) -> int:
        """Tokens of each row in the next pass."""
        return max(_FEWEST, self.tokens // rows)

    def ran(self, tokens: int, seconds: float) -> None:
        """Note the time of a pass."""
        rate = tokens / max(seconds, 1e-9)
        self._rate = rate if not self._rate else 0.5 * (self._rate + rate)


@torch.no_grad()
def prefill(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    pad_id: int,
    segments: Sequence[Segment | None] | None = None,
    pace: Pace | None = None,
    given_up: Callable[[], bool] = lambda: False,
) -> Prefill:
    """Run the trunk over B lists of token ids. A row with a segment begins with its ids, which are not run again.

    Rows with a segment share one pass, and rows without one share others, so that no row has much padding. If a row has
    more tokens to run than a sliding window is wide, rows are grouped by the number of tokens to run instead. The
    result of a row does not depend on the others. With a `pace`, a pass is split into parts along T, and `given_up` is
    called after each.

    Raises:
        RequestCancelledError: it was given up.
        SettingsError: a prompt does not begin with its segment's ids, or has no token after them.
        UnsupportedModelError: the model cannot be given the positions after a segment; or it caches more than keys and
            values, so that rows with different segments without tokens cannot share a batch.
    """
    segments = segments or [None] * len(prompts)
    for prompt, segment in zip(prompts, segments, strict=True):
        if segment is not None:
            _check(backbone, prompt, segment)
    alike = _common_pass(prompts, segments)
    apart = not alike or len({id(s) for s in segments}) > 1
    if apart and not all(s is None or can_join(s.kv_cache) for s in segments):
        if any(s is not None and not s.ids for s in segments):
            raise _cannot_share(backbone)
        segments = [None] * len(prompts)  # other cache state cannot be padded, so all is run again
    together: dict[int, list[int]] = {}
    for n, segment in enumerate(segments):
        if segment is not None:
            together.setdefault(0 if alike else len(prompts[n]) - len(segment.ids), []).append(n)
    whole = [n for n, segment in enumerate(segments) if segment is None]
    alone = _of_similar_length(whole, prompts) if joins(backbone) else [whole]
    parts = []
    for rows in filter(None, [*together.values(), *alone]):
        own = [segment for n in rows if (segment := segments[n]) is not None]
        parts.append((_prefill(backbone, [prompts[n] for n in rows], pad_id, own, pace, given_up), rows))
    return parts[0][0] if len(parts) == 1 else join(backbone, parts)


def prefill_beside(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    others: Sequence[tuple[Sequence[int], Segment]],
    pad_id: int,
    segments: Sequence[Segment | None],
    pace: Pace | None = None,
    given_up: Callable[[], bool] = lambda: False,
) -> tuple[Prefill, Prefill | None]:
    """`prefill` of prompts, and the states of `others` if these can share its pass without much padding, else None.

    Raises:
        As `prefill` does.
    """
    own = [segment for segment in segments if segment is not None]
    if others and joins(backbone) and len(own) == len(prompts):
        texts = [*prompts, *(text for text, _ in others)]
        fronts = [*own, *(segment for _, segment in others)]
        run = [len(text) - len(front.ids) for text, front in zip(texts, fronts, strict=True)]
        if sum(max(run) - count for count in run) <= _PADDING and _common_pass(texts, fronts):
            filled = prefill(backbone, texts, pad_id, fronts, pace, given_up)
            states = replace(filled, kv_cache=None, last=None)
            return picked(filled, range(len(prompts))), picked(states, range(len(prompts), len(texts)))
    return prefill(backbone, prompts, pad_id, segments, pace, given_up), None


def _check(backbone: Backbone, prompt: Sequence[int], segment: Segment) -> None:
    head = len(segment.ids)
    if len(prompt) <= head or tuple(prompt[:head]) != segment.ids:
        raise SettingsError(
            f"a segment stands for {head} tokens that the prompt of {len(prompt)} tokens must begin with, and the "
            "prompt must go on behind them; give each row the segment of its own prompt, or None"
        )
    config: Any = backbone.model.config.get_text_config(decoder=True)
    told = "position_ids" in inspect.signature(backbone.model.forward).parameters
    if segment.shift and (not told or getattr(config, "alibi", False)):
        raise unsupported(
            f"the token behind a segment of {segment.length} columns stands at position {segment.end}, and "
            f"{type(backbone.model).__name__} derives positions from columns",
            f"keep a column for each position (`end` = {segment.length}), or use a model that takes `position_ids`",
        )


def _cannot_share(backbone: Backbone) -> UnsupportedModelError:
    return unsupported(
        f"{type(backbone.model).__name__} caches more than keys and values, so a row with a segment of no tokens "
        "cannot be padded",
        "let only rows with the same segment share a batch",
    )


def _of_similar_length(rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Group rows: a shorter one begins a pass of its own where this spares much padding of the rows that follow it."""
    groups: list[list[int]] = []
    ordered = sorted(rows, key=lambda n: -len(prompts[n]))  # the first of a group is its longest
    for place, row in enumerate(ordered):
        spared = len(prompts[groups[-1][0]]) - len(prompts[row]) if groups else 0
        if not groups or spared * (len(ordered) - place) > _PADDING:
            groups.append([])
        groups[-1].append(row)
    return [sorted(group) for group in groups]


def _common_pass(prompts: Sequence[Sequence[int]], segments: Sequence[Segment | None]) -> bool:
    """Whether rows with different numbers of tokens to run can share a pass; see `close`."""
    behind = [(s.kv_cache, len(p) - len(s.ids)) for p, s in zip(prompts, segments, strict=True) if s is not None]
    reach = window(behind[0][0]) if behind else None
    if reach is None or len({left for _, left in behind}) == 1:
        return True
    return max(left for _, left in behind) - 1 < reach and all(can_join(cache) for cache, _ in behind)


def _prefill(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    pad_id: int,
    segments: Sequence[Segment],
    pace: Pace | None,
    given_up: Callable[[], bool],
) -> Prefill:
    """One pass. Either all rows have a segment, or none has."""
    device, heads = backbone.device, [len(s.ids) for s in segments] or [0] * len(prompts)
    shifts = tuple(s.shift for s in segments) or (0,) * len(prompts)
    rest = max(len(p) - head for p, head in zip(prompts, heads, strict=True))
    if segments:
        cache, before, x, residual = spread(backbone, segments)
    else:
        cache, before = None, torch.zeros(len(prompts), 0, dtype=torch.long, device=device)
        x = residual = nothing(backbone, len(prompts), 0)
    width, slides = before.shape[1], cache is not None and window(cache) is not None
    ids = torch.full((len(prompts), width + rest), pad_id, dtype=torch.long)
    text = torch.zeros_like(ids)
    for row, (prompt, head) in enumerate(zip(prompts, heads, strict=True)):
        # With sliding windows there may be no padding between a segment and the next token, so the padding goes to the
        # end.
        start = width if slides else width + rest - len(prompt) + head
        for first, part in ((width - head, prompt[:head]), (start, prompt[head:-1]), (width + rest - 1, prompt[-1:])):
            ids[row, first : first + len(part)] = torch.as_tensor(part, dtype=torch.long)
            text[row, first : first + len(part)] = 1
    ids, text = ids.to(device), text.to(device)
    mask = torch.cat([before, text[:, width:]], 1)
    held = pairs(cache) if cache is not None and slides else []
    last = None
    if rest > 1:
        # Caches with sliding windows or more than keys and values cannot give a column back.
        apart = joins(backbone) and reach(backbone) is None
        most = None if apart else -1
        behind = positions(mask[:, :most], shifts)[:, width:]
        more_x, more_residual, cache = _in_parts(
            backbone, ids[:, width:most], mask[:, :most], cache, behind, pace, given_up
        )
        if apart:
            last = newest(cache, more_x[:, -1:], more_residual[:, -1:])
            cache.crop(-1)
            more_x, more_residual = more_x[:, :-1], more_residual[:, :-1]
        x, residual = torch.cat([x.to(more_x), more_x], 1), torch.cat([residual.to(more_residual), more_residual], 1)
    spared = tuple(len(s.ids) - s.read for s in segments) or (0,) * len(prompts)
    filled = Prefill(ids, mask, text, cache, x, residual, spared, shifts, last)
    return close(backbone, filled, held, rest - 1) if slides and rest > 1 else filled


def prefill_behind(
    backbone: Backbone,
    filled: Prefill,
    prompts: Sequence[Sequence[int]],
    more: Sequence[Sequence[int]],
    pad_id: int,
    segments: Sequence[Segment | None] | None = None,
) -> Prefill:
    """One batch for decoding: the rows of `filled`, which were made from `prompts`, followed by rows for `more`, which
    begin with `segments`.

    Raises:
        UnsupportedModelError: as `prefill` does.
    """
    if not can_join(filled.kv_cache):  # other cache state cannot be padded, so all is run again
        if not torch.equal(filled.mask, filled.text):
            raise _cannot_share(backbone)
        return prefill(backbone, [*prompts, *more], pad_id)
    count = len(prompts)
    below = prefill(backbone, more, pad_id, segments)
    return join(backbone, [(filled, range(count)), (below, range(count, count + len(more)))])


@torch.no_grad()
def prefill_segment(
    backbone: Backbone,
    ids: Sequence[int],
    pace: Pace | None = None,
    given_up: Callable[[], bool] = lambda: False,
) -> Segment:
    """Prefill all P tokens `ids`, with which later prompts begin; `pace` and `given_up` as in `prefill`."""
    rows = torch.as_tensor(ids, dtype=torch.long, device=backbone.device)[None]
    mask = torch.ones_like(rows)
    x, residual, cache = _in_parts(backbone, rows, mask, None, positions(mask), pace, given_up)
    if window(cache) is not None:
        cache.reorder_cache(torch.zeros(1, dtype=torch.long))  # copies, so that columns outside the window are freed
    return Segment(tuple(ids), cache, x, residual)


@torch.no_grad()
def prefill_piece(backbone: Backbone, before: Segment | None, ids: Sequence[int]) -> Piece:
    """Prefill all P tokens `ids` after a segment, so that all their keys and values can be kept.

    A sliding window keeps a limited number of columns, so several passes may be needed.
    """
    cache = None if before is None else spread(backbone, [before])[0]
    seen = 0 if before is None else before.length
    kept = (reach(backbone) or len(ids) + 1) - 1  # columns per pass that all windows keep
    parts = []
    for start in range(0, len(ids), kept):
        rows = torch.as_tensor(ids[start : start + kept], dtype=torch.long, device=backbone.device)[None]
        mask = torch.ones(1, seen + start + rows.shape[1], dtype=torch.long, device=backbone.device)
        x, residual, cache = run(backbone, rows, mask, cache, positions(mask)[:, -rows.shape[1] :])
        parts.append(newest(cache, x, residual))
    return whole(parts)


def _in_parts(
    backbone: Backbone,
    ids: Tensor,
    mask: Tensor,
    cache: Cache | None,
    positions: Tensor,
    pace: Pace | None,
    given_up: Callable[[], bool],
) -> tuple[Tensor, Tensor, Cache]:
    """`run` over parts of the tokens, as many as the pace and the cache allow."""
    (rows, count), before = ids.shape, mask.shape[1] - ids.shape[1]
    found, first, most = list[tuple[Tensor, Tensor]](), 0, most_tokens(backbone, cache)
    while first < count:
        last = min(count, first + min(count if pace is None else pace.columns(rows), most))
        begun = time.monotonic()
        x, residual, cache = run(
            backbone, ids[:, first:last], mask[:, : before + last], cache, positions[:, first:last]
        )
        found.append((x, residual))
        if pace is not None:
            pace.ran(rows * (last - first), time.monotonic() - begun)
            if given_up():
                raise RequestCancelledError("the request was given up while its prompt was read")
        first = last
    assert cache is not None, "there is at least one token"
    x, residual = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    return x, residual, cache


def run(
    backbone: Backbone, ids: Tensor, mask: Tensor, cache: Cache | None, positions: Tensor
) -> tuple[Tensor, Tensor, Cache]:
    """Run the trunk over `ids` (B, T) after the tokens in the cache, which is modified.

    Args:
        backbone: the model.
        ids: token ids (B, T), or embeddings (B, T, D).
        mask: attention mask over cache and tokens (B, cached + T).
        cache: keys and values of earlier tokens, or None.
        positions: position of each token in its prompt (B, T).

    Returns:
        x (B, T, D), residual (B, T, D), and the cache including these tokens.
    """
    forward = backbone.model.forward
    accepted = inspect.signature(forward).parameters
    extra: dict[str, Any] = {cache_name(forward): cache}
    extra["inputs_embeds" if ids.is_floating_point() else "input_ids"] = ids
    if "position_ids" in accepted:
        extra["position_ids"] = positions
    if "logits_to_keep" in accepted:
        extra["logits_to_keep"] = 1  # the head's output is not needed, and it is expensive
    with backbone.watch() as seen, biased(backbone, cache):
        out = backbone.model(attention_mask=mask, use_cache=True, **extra)
    x, residual = seen.rows()
    return x, residual, cache_of(out)
