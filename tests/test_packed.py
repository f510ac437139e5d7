"""Several continuations of one cached text in one row, compared with each alone, on every model family."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from families import FAMILIES, build
from memograft.model.backbone import Backbone
from memograft.model.kv import window
from memograft.model.packed import attention, copied, packs
from memograft.model.prefill import prefill, run

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15]]
TAILS = ([21, 22, 23], [24, 25], [26, 27, 28, 29])


@cache
def backbone(family: str) -> Backbone:
    return Backbone.of(build(family).requires_grad_(False))


@pytest.mark.parametrize("family", sorted(FAMILIES))
@torch.no_grad()
def test_packed_continuations_are_those_of_single_ones(family: str) -> None:
    """The second continuation does not see the last two columns of the cache; positions begin anew for each."""
    parts = backbone(family)
    filled = prefill(parts, PROMPTS, 0)
    assert filled.kv_cache is not None
    if not packs(parts, filled.kv_cache):
        pytest.skip("this model does not take such a mask")
    before, cached = filled.kv_cache, filled.mask[:, :-1].bool()
    seen = torch.stack([cached, cached, cached], 1)  # (B, tail, K)
    seen[:, 1, -2:] = False
    starts = cached.sum(1)
    owner = torch.arange(3).repeat_interleave(torch.tensor([len(t) for t in TAILS])).expand(2, -1)
    ids = torch.tensor([[token for tail in TAILS for token in tail]]).expand(2, -1)
    positions = torch.cat([starts[:, None] + torch.arange(len(t)) for t in TAILS], 1)
    mask = attention(seen[torch.arange(2)[:, None], owner], owner, parts.model.dtype)
    together, _, _ = run(parts, ids, mask, copied(before), positions)
    at = 0
    for n, tail in enumerate(TAILS):
        own = torch.cat([seen[:, n], torch.ones(2, len(tail), dtype=torch.bool)], 1).long()
        places = starts[:, None] + torch.arange(len(tail))
        alone, _, _ = run(parts, torch.tensor([tail]).expand(2, -1), own, copied(before), places)
        torch.testing.assert_close(together[:, at : at + len(tail)], alone, rtol=1e-4, atol=1e-5)
        at += len(tail)
    assert all(torch.equal(a.keys, b.keys) for a, b in zip(before.layers, filled.kv_cache.layers, strict=True))


def test_most_families_pack_and_those_with_a_window_never_do() -> None:
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for family in FAMILIES:
        parts = backbone(family)
        cache_ = prefill(parts, PROMPTS, 0).kv_cache
        assert cache_ is not None
        found[packs(parts, cache_)].add(family)
        assert not (packs(parts, cache_) and window(cache_) is not None)
    assert {"llama", "qwen3", "gpt2", "phi3", "gpt_neox"} <= found[True]
    assert len(found[True]) >= 2 * len(found[False])


def test_a_model_that_ignores_the_mask_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Backbone.of(build("llama").requires_grad_(False))
    cache_ = prefill(parts, PROMPTS, 0).kv_cache
    assert cache_ is not None

    def ignored(cached: Tensor, owner: Tensor, dtype: torch.dtype) -> Tensor:
        return attention(torch.ones_like(cached), torch.zeros_like(owner), dtype)

    monkeypatch.setattr("memograft.model.packed.attention", ignored)
    assert not packs(parts, cache_)
