"""Rows with different segments: the number of passes, their answers, and invalid segments."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM

from families import FAMILIES, build
from memograft.decoding.loop import decode
from memograft.decoding.row import Row
from memograft.errors import SettingsError, UnsupportedModelError
from memograft.model import prefill as module
from memograft.model.backbone import Backbone, cache_name
from memograft.model.kv import Prefill, Segment, pairs
from memograft.model.prefill import prefill, prefill_behind, prefill_segment
from memograft.request import Sampling
from test_prefill import close, next_logits, prompts

# Stores keys of an index besides keys and values.
INDEXED: dict[str, Any] = FAMILIES["llama"] | {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 2,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_topk": 64,
}
HEADS, TAILS = prompts(11, 4, 20), prompts(3, 6, 2, 3, 1, 9, seed=1)
CHOSEN = (0, 1, None, 2, 1, None)
MANY = [[*(HEADS[c] if c is not None else ()), *tail] for c, tail in zip(CHOSEN, TAILS, strict=True)]


def parts_of(family: str, **changes: Any) -> Backbone:
    return Backbone.of(build(family, changes=changes).requires_grad_(False))


def indexed(monkeypatch: pytest.MonkeyPatch) -> Backbone:
    monkeypatch.setitem(FAMILIES, "deepseek_v32", INDEXED)
    return parts_of("deepseek_v32")


def kept(parts: Backbone) -> list[Segment]:
    return [prefill_segment(parts, head) for head in HEADS]


def behind(segments: Sequence[Segment]) -> list[Segment | None]:
    return [None if c is None else segments[c] for c in CHOSEN]


def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of each further pass."""
    counted: list[int] = []
    real = module.run
    monkeypatch.setattr(module, "run", lambda *a: (counted.append(len(a[1])), real(*a))[1])
    return counted


def said(parts: Backbone, tokenizer: Any, filled: Prefill, count: int = 20) -> list[list[int]]:
    rows = [Row(Sampling(count), count) for _ in filled.ids]
    decode(parts, filled, rows, tokenizer)
    return [row.tokens for row in rows]


@pytest.mark.parametrize(
    ("family", "changes", "expected"),
    [
        ("llama", {}, [4, 2]),
        ("gpt2", {}, [4, 2]),
        ("gemma2", {"sliding_window": 64}, [4, 2]),
        ("gemma2", {"sliding_window": 6}, [4, 2]),  # at most 6 tokens to run, of which the last waits for decoding
        ("gemma2", {"sliding_window": 5}, [2, 1, 2]),  # 3 tokens twice, 6 once, and one row without a segment
    ],
)
def test_passes(family: str, changes: Any, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    parts = parts_of(family, **changes)
    segments = behind(kept(parts))
    counted = passes(monkeypatch)
    prefill(parts, MANY, 0, segments)
    assert counted == expected


@pytest.mark.parametrize(
    ("family", "window"),
    [*((f, None) for f in sorted(FAMILIES)), *itertools.product(("gemma2", "gemma3_text", "mistral"), (5, 6, 26))],
)
def test_rows_say_what_they_say_alone(family: str, window: int | None, tokenizer: Any) -> None:
    """For more tokens than the windows have, so that a misplaced column would be dropped too early or too late."""
    parts = parts_of(family) if window is None else parts_of(family, sliding_window=window)
    segments = behind(kept(parts))
    alone = [said(parts, tokenizer, prefill(parts, [prompt], 0))[0] for prompt in MANY]
    filled = prefill(parts, MANY, 0, segments)
    assert said(parts, tokenizer, filled) == alone
    own = [prefill(parts, [prompt], 0, [segment]) for prompt, segment in zip(MANY, segments, strict=True)]
    assert [said(parts, tokenizer, one)[0] for one in own] == alone
    more = prefill_behind(parts, prefill(parts, MANY, 0, segments), MANY, [HEADS[0]], 0)
    assert said(parts, tokenizer, more)[: len(MANY)] == alone
    assert len({tuple(tokens) for tokens in alone}) == len(MANY)


def without(parts: Backbone, head: Sequence[int], columns: Sequence[int], **options: Any) -> tuple[Segment, list[int]]:
    """A segment of `head` without some columns, and the kept ones."""
    whole = prefill_segment(parts, head)
    keep = [n for n in range(len(head)) if n not in columns]
    cache = DynamicCache(config=parts.model.config)
    for n, layer in enumerate(whole.kv_cache.layers):
        cache.update(layer.keys[:, :, keep], layer.values[:, :, keep], n)
    return Segment((), cache, **options), keep


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "phi", "mistral", "gemma2", "gptj", "falcon"])
def test_a_segment_with_fewer_columns_than_positions(family: str, tokenizer: Any) -> None:
    """Later tokens have the positions as with all columns, and attend to the kept ones."""
    parts, (head, tail, other) = parts_of(family), prompts(12, 5, 9)
    segment, keep = without(parts, head, (1, 2, 5, 9), end=12)
    assert (segment.length, segment.shift) == (8, 4)
    filled = prefill(parts, [tail, other, tail], 0, [segment, None, replace(segment, end=8)])
    assert filled.positions[0, -5:].tolist() == [12, 13, 14, 15, 16]
    assert filled.positions[2, -5:].tolist() == [8, 9, 10, 11, 12]

    logits = next_logits(parts, filled)
    assert not torch.allclose(logits[0], logits[2], rtol=1e-2), "positions that change nothing prove nothing"

    mask = torch.zeros(1, 12, dtype=torch.long)
    mask[:, keep] = 1
    cache, name, ids = prefill_segment(parts, head).kv_cache, cache_name(parts.model.forward), torch.tensor([tail])
    expected: list[int] = []
    for _ in range(12):
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
        positions = torch.arange(mask.shape[1])[None, -ids.shape[1] :]
        out = parts.model(input_ids=ids, attention_mask=mask, position_ids=positions, **{name: cache}).logits[0, -1]
        if not expected:
            close(logits[0], out)
        ids = out.argmax()[None, None]
        expected.append(int(ids))
    tokens = said(parts, tokenizer, filled, 12)
    assert tokens[0] == expected
    assert tokens[1] == said(parts, tokenizer, prefill(parts, [other], 0), 12)[0]
    more = prefill_behind(parts, prefill(parts, [tail, other], 0, [segment, None]), [tail, other], [other], 0)
    assert (more.shifts, more.positions[0, -1]) == ((4, 0, 0), 16)


class Counts(LlamaForCausalLM):  # type: ignore[misc]
    """A custom model that does not take positions."""

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, past_key_values: Any = None, use_cache: Any = None
    ) -> Any:
        known = {cache_name(super().forward): past_key_values}
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache, **known)


@pytest.mark.parametrize("kind", ["its own forward", "alibi"])
def test_a_model_that_counts_columns_itself_takes_no_other_position(kind: str) -> None:
    if kind == "alibi":
        parts = parts_of("falcon", alibi=True)
    else:
        parts = Backbone.of(Counts(build("llama").config).eval().requires_grad_(False))
    head, tail = prompts(12, 5)
    segment, _ = without(parts, head, (1, 2))
    prefill(parts, [tail], 0, [segment])
    message = (
        f"the token behind a segment of 10 columns stands at position 12, and {type(parts.model).__name__} derives "
        "positions from columns; keep a column for each position (`end` = 10), or use a model that takes `position_ids`"
    )
    with pytest.raises(UnsupportedModelError) as error:
        prefill(parts, [tail], 0, [replace(segment, end=12)])
    assert str(error.value) == message


@pytest.mark.parametrize("prompt", [HEADS[0], [*HEADS[0][:-1], 0, 7], HEADS[0][:3]], ids=["all", "other", "short"])
def test_a_prompt_that_does_not_go_on_behind_its_segment(prompt: list[int]) -> None:
    parts = parts_of("llama")
    message = (
        f"a segment stands for 11 tokens that the prompt of {len(prompt)} tokens must begin with, and the prompt must "
        "go on behind them; give each row the segment of its own prompt, or None"
    )
    with pytest.raises(SettingsError) as error:
        prefill(parts, [prompt], 0, [prefill_segment(parts, HEADS[0])])
    assert str(error.value) == message


def test_what_cannot_be_a_segment() -> None:
    parts = parts_of("llama")
    whole = prefill_segment(parts, HEADS[1])
    message = (
        "a segment of 4 columns cannot stand for 11 tokens; keep a column for each, or give it no `ids` and leave its "
        "tokens out of the prompt"
    )
    with pytest.raises(SettingsError) as error:
        replace(whole, ids=tuple(HEADS[0]))
    assert str(error.value) == message
    message = "a segment that stands for 4 tokens needs their x and residual; take those of the pass that made it"
    with pytest.raises(SettingsError) as error:
        replace(whole, residual=None)
    assert str(error.value) == message


def test_a_segment_without_tokens_counts_its_bytes() -> None:
    whole = prefill_segment(parts_of("llama"), HEADS[0])
    assert whole.x is not None


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_segment_keeps_no_more_than_its_bytes(family: str) -> None:
    """Columns that a sliding window has dropped do not stay in memory."""
    segment = prefill_segment(parts_of(family, **({"sliding_window": 6} if family == "gemma2" else {})), HEADS[2])
    tensors = [tensor for pair in pairs(segment.kv_cache) for tensor in pair]
    assert sum(tensor.untyped_storage().nbytes() for tensor in tensors) == sum(tensor.nbytes for tensor in tensors)


class TestMoreThanKeysAndValues:
    """Rows that cannot be padded: one segment is shared, several are run again, and none is dropped silently."""

    def test_one_segment_for_all_is_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        parts = indexed(monkeypatch)
        segment, many = prefill_segment(parts, HEADS[0]), [[*HEADS[0], *tail] for tail in TAILS]
        counted = passes(monkeypatch)
        filled = prefill(parts, many, 0, [segment] * len(many))
        assert counted == [len(many)]
        assert filled.cached == (11,) * len(many)
        for row, prompt in enumerate(many):
            close(next_logits(parts, filled)[row], next_logits(parts, prefill(parts, [prompt], 0))[0])

    def test_several_are_read_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        parts = indexed(monkeypatch)
        filled = prefill(parts, MANY, 0, behind(kept(parts)))
        assert filled.cached == (0,) * len(MANY)
        more = prefill_behind(parts, filled, MANY, [HEADS[0]], 0)
        for row, prompt in enumerate([*MANY, HEADS[0]]):
            close(next_logits(parts, more)[row], next_logits(parts, prefill(parts, [prompt], 0))[0])

    def test_those_of_no_tokens_cannot_be(self, monkeypatch: pytest.MonkeyPatch) -> None:
        parts = indexed(monkeypatch)
        bare = Segment((), prefill_segment(parts, HEADS[0]).kv_cache)
        message = (
            f"{type(parts.model).__name__} caches more than keys and values, so a row with a segment of no tokens "
            "cannot be padded; let only rows with the same segment share a batch"
        )
        with pytest.raises(UnsupportedModelError) as error:
            prefill(parts, TAILS[:2], 0, [bare, None])
        assert str(error.value) == message
        filled = prefill(parts, TAILS[:2], 0, [bare, bare])
        close(next_logits(parts, filled)[0], next_logits(parts, prefill(parts, [HEADS[0] + TAILS[0]], 0))[0])
        with pytest.raises(UnsupportedModelError) as error:
            prefill_behind(parts, filled, TAILS[:2], [HEADS[0]], 0)
        assert str(error.value) == message
