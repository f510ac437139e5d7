"""One pass over the prompts: their keys and values, and the rows that memorizing trains on.

Nothing here depends on the last FFN, so the result is right for every memory and every mix of memories. The last prompt
token is left to decoding, whose first step it is. Knows nothing of text or memories; columns are `model/kv.py`'s.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from memograft.model.backbone import Backbone, cache_name, cache_of
from memograft.model.kv import Prefill, Segment, can_join, join, positions, slides, spread

__all__ = ["prefill", "prefill_behind", "prefill_segment", "run"]


@torch.no_grad()
def prefill(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    pad_id: int,
    segments: Sequence[Segment | None] | None = None,
) -> Prefill:
    """Run the trunk over B lists of token ids, each behind its segment, if it has one, whose ids it begins with.

    Rows with and without one are run apart, and those behind sliding windows by what they have left to read; each is
    what it would be alone.
    """
    segments = segments or [None] * len(prompts)
    if len({id(s) for s in segments}) > 1 and not all(s is None or can_join(s.kv_cache) for s in segments):
        segments = [None] * len(prompts)  # running states cannot be padded, so that all is read again
    together: dict[Any, list[int]] = {}
    for n, segment in enumerate(segments):
        together.setdefault(_pass(segment, prompts[n]), []).append(n)
    parts = []
    for rows in together.values():
        own = [segment for n in rows if (segment := segments[n]) is not None]
        parts.append((_prefill(backbone, [prompts[n] for n in rows], pad_id, own), rows))
    return parts[0][0] if len(parts) == 1 else join(backbone, parts)


def _pass(segment: Segment | None, prompt: Sequence[int]) -> Any:
    """Equal for rows that may be run together."""
    if segment is None:
        return None
    if not can_join(segment.kv_cache):
        return id(segment)
    # Padding between a segment and what follows would shift a sliding window.
    return len(prompt) - len(segment.ids) if slides(segment.kv_cache) else "segment"


def _prefill(backbone: Backbone, prompts: Sequence[Sequence[int]], pad_id: int, segments: Sequence[Segment]) -> Prefill:
    """One pass; either every row has a segment, or none has."""
    device, heads = backbone.device, [len(s.ids) for s in segments] or [0] * len(prompts)
    rest = max(len(p) - head for p, head in zip(prompts, heads, strict=True))
    if segments:
        cache, before, x, residual = spread(backbone, segments)
    else:
        cache, before = None, torch.zeros(len(prompts), 0, dtype=torch.long, device=device)
        x = residual = _empty(backbone, len(prompts))
    width = before.shape[1]
    ids = torch.full((len(prompts), width + rest), pad_id, dtype=torch.long)
    text = torch.zeros_like(ids)
    for row, (prompt, head) in enumerate(zip(prompts, heads, strict=True)):
        for start, part in ((width - head, prompt[:head]), (width + rest - len(prompt) + head, prompt[head:])):
            ids[row, start : start + len(part)] = torch.as_tensor(part, dtype=torch.long)
            text[row, start : start + len(part)] = 1
    ids, text = ids.to(device), text.to(device)
    mask = torch.cat([before, text[:, width:]], 1)
    if rest > 1:
        behind = positions(mask[:, :-1])[:, width:]
        new_x, new_residual, cache = run(backbone, ids[:, width:-1], mask[:, :-1], cache, behind)
        x, residual = torch.cat([x, new_x], 1), torch.cat([residual, new_residual], 1)
    return Prefill(ids, mask, text, cache, x, residual, tuple(heads))


def prefill_behind(
    backbone: Backbone, filled: Prefill, prompts: Sequence[Sequence[int]], more: Sequence[Sequence[int]], pad_id: int
) -> Prefill:
    """One batch for decoding: the rows of `filled`, made of `prompts`, and behind them those of `more`."""
    if not can_join(filled.kv_cache):  # running states cannot be padded: all are run again, together
        return prefill(backbone, [*prompts, *more], pad_id)
    count = len(prompts)
    below = prefill(backbone, more, pad_id)
    return join(backbone, [(filled, range(count)), (below, range(count, count + len(more)))])


@torch.no_grad()
def prefill_segment(backbone: Backbone, ids: Sequence[int]) -> Segment:
    """Prefill the tokens `ids` (P of them, all), which prompts begin with later."""
    rows = torch.as_tensor(ids, dtype=torch.long, device=backbone.device)[None]
    mask = torch.ones_like(rows)
    x, residual, cache = run(backbone, rows, mask, None, positions(mask))
    return Segment(tuple(ids), cache, x, residual)


def run(
    backbone: Backbone, ids: Tensor, mask: Tensor, cache: Cache | None, positions: Tensor
) -> tuple[Tensor, Tensor, Cache]:
    """Run the trunk over `ids` (B, T) behind what the cache holds; it is written to.

    Args:
        backbone: whose trunk it is.
        ids: token ids (B, T).
        mask: 1 for the tokens that may be seen, those in the cache first (B, cached + T).
        cache: of the tokens before, or None.
        positions: where each token stands in its prompt (B, T).

    Returns:
        x (B, T, D), residual (B, T, D), and the cache with these tokens in it.
    """
    forward = backbone.model.forward
    accepted = inspect.signature(forward).parameters
    extra: dict[str, Any] = {cache_name(forward): cache}
    if "position_ids" in accepted:
        extra["position_ids"] = positions
    if "logits_to_keep" in accepted:
        extra["logits_to_keep"] = 1  # the head is not wanted here, and it is the dearest part
    with backbone.watch() as seen:
        out = backbone.model(input_ids=ids, attention_mask=mask, use_cache=True, **extra)
    x, residual = seen.rows()
    return x, residual, cache_of(out)


def _empty(backbone: Backbone, rows: int) -> Tensor:
    dtype: Any = backbone.model.dtype
    return torch.zeros(rows, 0, backbone.width, dtype=dtype, device=backbone.device)
