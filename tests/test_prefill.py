"""Prefill: padded batches equal single runs, results with and without a prefix are equal, nothing is left behind."""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace
from functools import cache

import pytest
import torch

from families import FAMILIES, build
from memograft.documents import Document
from memograft.memory.fastmem.rows import context_rows, gather, merge
from memograft.model import prefill as module
from memograft.model.backbone import Backbone, cache_name, cache_of
from memograft.model.kv import Prefill, Segment, join, joins, picked
from memograft.model.prefill import prefill, prefill_beside, prefill_segment
from memograft.prompt.builder import PromptBuilder
from test_backbone import assert_same, state
from tokenizers_ import make

LENGTHS = (9, 3, 14)


@cache
def backbone(family: str) -> Backbone:
    return Backbone.of(build(family).requires_grad_(False))


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 320, (n,), generator=generator).tolist() for n in lengths]


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= 2e-5 * float(b.abs().max())


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_padded_batches_equal_single_runs_and_the_model_itself(family: str) -> None:
    parts, many = backbone(family), prompts(*LENGTHS)
    before = state(parts.model)
    together = prefill(parts, many, pad_id=0)
    assert together.mask.sum(1).tolist() == list(LENGTHS)
    for row, prompt in enumerate(many):
        alone = prefill(parts, [prompt], pad_id=0)
        assert alone.kv_cache is not None
        assert alone.kv_cache.get_seq_length() == len(prompt) - 1
        columns = together.columns(row, range(len(prompt) - 1))
        close(together.x[row, columns], alone.x[0])
        close(together.residual[row, columns], alone.residual[0])
        own = parts.model(input_ids=torch.tensor([prompt])).logits[:, :-1]
        close(parts.logits(alone.x, alone.residual), own)
    assert_same(before, state(parts.model))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_keys_and_values_are_those_of_an_ordinary_pass(family: str) -> None:
    parts, prompt = backbone(family), prompts(12)[0]
    ours = prefill(parts, [prompt], pad_id=0).kv_cache
    theirs = parts.model(input_ids=torch.tensor([prompt[:-1]]), use_cache=True)
    assert ours is not None
    for one, other in zip(ours.layers, cache_of(theirs).layers, strict=True):
        close(one.keys, other.keys)
        close(one.values, other.values)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "phi", "falcon", "olmo2"])
def test_a_prefix_gives_what_the_whole_prompt_gives_and_is_not_written_to(family: str) -> None:
    parts = backbone(family)
    name = cache_name(parts.model.forward)
    head, *tails = prompts(7, 4, 2, 1)
    prefix = prefill_segment(parts, head)
    keys = prefix.kv_cache.layers[0].keys.clone()
    filled = prefill(parts, [head + tail for tail in tails], pad_id=0, segments=[prefix] * len(tails))
    assert filled.cached == (len(head),) * len(tails)
    for row, tail in enumerate(tails):
        whole = prefill(parts, [head + tail], pad_id=0)
        columns = filled.columns(row, range(len(head + tail) - 1))
        close(filled.x[row, columns], whole.x[0])
        close(filled.residual[row, columns], whole.residual[0])
        last = torch.tensor([[tail[-1]]])
        alone = prefill(parts, [head + tail], pad_id=0, segments=[prefix])
        for cached in (whole, alone):
            out = parts.model(input_ids=last, attention_mask=cached.mask, **{name: cached.kv_cache})
            close(out.logits[0, -1], parts.model(input_ids=torch.tensor([head + tail])).logits[0, -1])
    assert torch.equal(prefix.kv_cache.layers[0].keys, keys)
    assert prefix.kv_cache.get_seq_length() == len(head)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_once_more_are_the_same_rows_and_leave_the_first_batch_alone(family: str) -> None:
    parts = backbone(family)
    filled = prefill(parts, prompts(5, 90, 40), pad_id=0)
    more = picked(filled, [*range(len(LENGTHS)), 2, 0])
    assert filled.kv_cache is not None
    assert more.kv_cache is not None
    for layer, own in zip(more.kv_cache.layers, filled.kv_cache.layers, strict=True):
        assert len(own.keys) == 3
        for a, b in ((layer.keys, own.keys), (layer.values, own.values)):
            assert torch.equal(a, b[[0, 1, 2, 2, 0]])
    assert torch.equal(more.ids, filled.ids[[0, 1, 2, 2, 0]])
    assert torch.equal(more.mask, filled.mask[[0, 1, 2, 2, 0]])


def next_logits(parts: Backbone, filled: Prefill) -> torch.Tensor:
    """(B, V) logits of the token after each prompt."""
    name = cache_name(parts.model.forward)
    accepted = {} if filled.kv_cache is None else {name: copy.deepcopy(filled.kv_cache)}
    if "position_ids" in inspect.signature(parts.model.forward).parameters:
        accepted["position_ids"] = filled.positions[:, -1:]
    return parts.model(input_ids=filled.ids[:, -1:], attention_mask=filled.mask, **accepted).logits[:, -1]


@pytest.mark.parametrize("window", [6, 64])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_rows_with_segments_of_their_own(family: str, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long and short segments, one twice, and none; with windows longer and shorter than the tokens to run."""
    if window == 6 and "sliding_window" not in FAMILIES[family]:
        pytest.skip("no sliding window")
    if "sliding_window" in FAMILIES[family]:
        monkeypatch.setitem(FAMILIES, family, FAMILIES[family] | {"sliding_window": window})
    parts = Backbone.of(build(family).requires_grad_(False))
    heads, tails = prompts(11, 4, 20), prompts(3, 6, 2, 3, 1, 9, seed=1)
    kept = [prefill_segment(parts, head) for head in heads]
    keys = [segment.kv_cache.layers[0].keys.clone() for segment in kept]
    chosen = [0, 1, None, 2, 1, None]
    many = [[*(heads[c] if c is not None else ()), *tail] for c, tail in zip(chosen, tails, strict=True)]
    segments = [None if c is None else kept[c] for c in chosen]
    filled = prefill(parts, many, pad_id=0, segments=segments)
    logits = next_logits(parts, filled)
    assert filled.cached == tuple(0 if s is None else len(s.ids) for s in segments)
    for row, prompt in enumerate(many):
        alone = prefill(parts, [prompt], pad_id=0)
        columns = filled.columns(row, range(len(prompt) - 1))
        close(filled.x[row, columns], alone.x[0])
        close(filled.residual[row, columns], alone.residual[0])
        assert filled.ids[row, filled.columns(row, range(len(prompt)))].tolist() == prompt
        close(logits[row], next_logits(parts, alone)[0])
    for segment, before, head in zip(kept, keys, heads, strict=True):
        assert torch.equal(segment.kv_cache.layers[0].keys, before)
        assert segment.length == len(head)


@pytest.mark.parametrize("window", [6, 64])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_texts_beside_prompts(family: str, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if "sliding_window" in FAMILIES[family]:
        monkeypatch.setitem(FAMILIES, family, FAMILIES[family] | {"sliding_window": window})
    parts = Backbone.of(build(family).requires_grad_(False))
    heads, tails = prompts(11, 7), prompts(3, 4, seed=1)
    many = [[*head, *tail] for head, tail in zip(heads, tails, strict=True)]
    kept, front = [prefill_segment(parts, head) for head in heads], prefill_segment(parts, [5, 9, 14])
    text = [5, 9, 14, *tails[0]]
    filled, states = prefill_beside(parts, many, [(text, front)], 0, kept)
    alone = prefill(parts, many, pad_id=0, segments=kept)
    assert filled.ids.shape == alone.ids.shape
    close(next_logits(parts, filled), next_logits(parts, alone))
    if states is None:  # other cache state, or windows shorter than rows of different lengths
        assert window == 6 or not joins(parts)
        return
    assert states.kv_cache is None
    own = prefill(parts, [text], pad_id=0)
    close(states.x[0, states.columns(0, range(len(text) - 1))], own.x[0])
    close(states.residual[0, states.columns(0, range(len(text) - 1))], own.residual[0])


def test_texts_that_would_be_padded_much_are_not_run_beside_prompts() -> None:
    parts, (head, text), (short, long) = backbone("llama"), prompts(4, 3), prompts(5, 300, seed=1)
    kept, front = prefill_segment(parts, head), prefill_segment(parts, text[:2])
    assert prefill_beside(parts, [head + short], [(text, front)], 0, [kept])[1] is not None
    assert prefill_beside(parts, [head + long], [(text, front)], 0, [kept])[1] is None
    assert prefill_beside(parts, [head + short], [(text, front)], 0, [None])[1] is None


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2", "mistral"])
def test_a_segment_that_stands_for_no_token_of_the_prompt(family: str) -> None:
    parts, (front, prompt, other) = backbone(family), prompts(7, 5, 9)
    kept = prefill_segment(parts, front)
    bare = Segment((), kept.kv_cache)
    filled = prefill(parts, [prompt, other], pad_id=0, segments=[bare, None])
    assert filled.cached == (0, 0)
    assert filled.text.sum(1).tolist() == [5, 9]
    assert filled.mask.sum(1).tolist() == [12, 9]
    logits = next_logits(parts, filled)
    close(logits[0], next_logits(parts, prefill(parts, [front + prompt], pad_id=0))[0])
    close(logits[1], next_logits(parts, prefill(parts, [other], pad_id=0))[0])


@pytest.mark.parametrize("window", [6, 64])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "mistral", "gpt2"])
def test_joined_batches_are_what_they_were(family: str, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if "sliding_window" in FAMILIES[family]:
        monkeypatch.setitem(FAMILIES, family, FAMILIES[family] | {"sliding_window": window})
    parts = Backbone.of(build(family).requires_grad_(False))
    many = prompts(9, 1, 14, 5)
    one, other = prefill(parts, many[:1], pad_id=0), prefill(parts, many[2:], pad_id=0)
    single = prefill(parts, many[1:2], pad_id=0)
    joined = join(parts, [(other, [3, 0]), (one, [2]), (single, [1])])
    logits = next_logits(parts, joined)
    for row, prompt in enumerate([many[3], many[1], many[0], many[2]]):
        close(logits[row], next_logits(parts, prefill(parts, [prompt], pad_id=0))[0])


def test_a_prompt_of_one_token_has_nothing_to_prefill() -> None:
    parts = backbone("llama")
    filled = prefill(parts, [[5], [6]], pad_id=0)
    assert filled.kv_cache is None
    assert filled.x.shape == filled.residual.shape == (2, 0, 32)
    both = prefill(parts, prompts(1, 5), pad_id=0)
    assert both.x.shape == (2, 4, 32)


def test_a_prompt_that_is_a_prefix_and_one_token_runs_nothing() -> None:
    parts, prompt = backbone("llama"), prompts(6)[0]
    filled = prefill(parts, [prompt, prompt], pad_id=0, segments=[prefill_segment(parts, prompt[:-1])] * 2)
    close(filled.x[1:], prefill(parts, [prompt], pad_id=0).x)


def test_the_head_is_not_run() -> None:
    parts, seen = backbone("llama"), list[int]()
    handle = parts.head.register_forward_hook(lambda _module, args, _out: seen.append(args[0].shape[1]))
    try:
        prefill(parts, prompts(12), pad_id=0)
    finally:
        handle.remove()
    assert seen == [0]


def test_context_rows_are_those_before_the_context_tokens() -> None:
    parts, builder = backbone("llama"), PromptBuilder(make("bpe"))
    question = [{"role": "user", "content": "Who?"}]
    made = [builder.build(question, [Document(t) for t in texts]) for texts in (["red and blue", "one"], ["Paris"])]
    filled = prefill(parts, [p.ids for p in made], pad_id=0)
    parts_of = [context_rows(filled, row, prompt) for row, prompt in enumerate(made)]
    for prompt, rows in zip(made, parts_of, strict=True):
        assert rows.targets.tolist() == [prompt.ids[t] for t in prompt.context]
        alone = prefill(parts, [prompt.ids], pad_id=0)
        close(rows.x, alone.x[0, [t - 1 for t in prompt.context]])
    merged = merge(parts_of)
    assert list(merged.lengths) == [len(p.context) for p in made]
    assert torch.equal(merged.single(1).x, parts_of[1].x)


def test_gather_ends_with_the_last_document_and_leaves_decoding_a_token() -> None:
    builder = PromptBuilder(make("bpe"))
    prompt = builder.build([{"role": "user", "content": "Who?"}], [Document("one"), Document("two")])
    assert gather(prompt) == prompt.ids[: prompt.spans[-1][1]]
    assert gather(builder.build([{"role": "user", "content": "Who?"}])) == ()
    last = PromptBuilder(make("bpe", "{{ messages[0]['content'] }}{% for d in documents %}{{ d.text }}{% endfor %}"))
    prompt = last.build([{"role": "user", "content": "Who?"}], [Document("one")])
    assert gather(prompt) == prompt.ids[:-1]


def test_the_end_of_each_document_is_a_row_of_its_own() -> None:
    parts, builder = backbone("llama"), PromptBuilder(make("bpe"))
    prompt = builder.build([{"role": "user", "content": "Who?"}], [Document("red"), Document(""), Document("two men")])
    filled = prefill(parts, [prompt.ids], pad_id=0)
    plain, ended = (context_rows(filled, 0, prompt, end) for end in (None, 2))
    assert ended.targets.tolist() == [*plain.targets.tolist(), 2, 2]
    assert (plain.ends, ended.ends) == ((0,), (2,))
    lasts = [end - 1 for start, end in prompt.spans if end > start]
    assert torch.equal(ended.x[-2:], filled.x[0, lasts])
    both = merge([plain, ended, ended])
    assert [(s.start, s.stop) for s in both.texts] == [
        (0, len(plain.targets)),
        (len(plain.targets), 2 * len(plain.targets)),
        (2 * len(plain.targets) + 2, 3 * len(plain.targets) + 2),
    ]
    assert both.single(1).ends == (2,)
    cut = replace(prompt, ids=prompt.ids[: prompt.spans[-1][1]])  # decoding runs the last token
    assert context_rows(prefill(parts, [cut.ids], 0), 0, cut, 2).ends == (1,)


def test_rows_of_very_different_lengths_are_not_padded_to_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Backbone.of(build("llama", changes={"max_position_embeddings": 2048}).requires_grad_(False))
    many, shapes = prompts(900, 30, 880, 40, 33), []
    real = module.run
    monkeypatch.setattr(module, "run", lambda *a: (shapes.append(tuple(a[1].shape)), real(*a))[1])
    together = prefill(parts, many, pad_id=0)
    assert shapes == [(2, 900), (3, 40)]
    assert together.text.sum(1).tolist() == [len(prompt) for prompt in many]
    for row, prompt in enumerate(many):
        close(next_logits(parts, together)[row], next_logits(parts, prefill(parts, [prompt], pad_id=0))[0])
