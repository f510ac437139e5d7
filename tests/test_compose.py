"""Composed memories: the mean of single documents' memories, which are trained once for all combinations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from families import build
from memograft import Bank, Engine, FastMem, Request
from memograft.errors import SettingsError
from memograft.memory.fastmem import compose
from memograft.model.adapter import Adapter, applied, stack
from memograft.model.backbone import Backbone, linear_shape
from memograft.prompt.builder import PromptBuilder
from memograft.request import Sampling
from reference import compose as reference
from reference import fastmem
from test_engine import FACTS, ask

LORA = FastMem(
    steps=3, learning_rate=0.01, rank=4, target_kl=None, max_kl=1e9, shortlist=None, fallback=False, relevance=None
)
JOINED = replace(LORA, compose=True)
SYSTEM = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is it?"}]


def changes(adapter: Adapter | None) -> dict[str, torch.Tensor]:
    assert adapter is not None
    return {name: adapter.lora_b[name] @ adapter.lora_a[name] for name in adapter.lora_a}


def close(ours: Any, theirs: Any) -> None:
    ours, theirs = torch.as_tensor(ours), torch.as_tensor(theirs)
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-5


@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("family", ["llama", "olmo2", "gpt2", "gemma2"])
def test_it_equals_the_naive_one(family: str, adapter: str, tokenizer: Any) -> None:
    """Each document is trained alone through the whole model, the changes averaged, and the real prompt run again."""
    model, builder = build(family), PromptBuilder(tokenizer)
    memory = replace(JOINED, adapter=adapter)
    with Engine(model, tokenizer) as engine:
        request = ask(n=1, documents=FACTS, memory=memory)
        answer, spoken = engine.answer(request), engine.next_token_logprobs(request)
        real = builder.build([{"role": "user", "content": request.question}], request.documents)
        names = list(Backbone.of(model).projections)
        twins = []
        for document in real.documents:
            text = builder.build([{"role": "user", "content": "?"}], [document])
            assert builder.turn_end is not None
            ends = [(text.spans[0][1] - 1, builder.turn_end)]
            settings = {"lr": 0.01, "steps": 3, "beta": 0.1, "decay": 0.0, "ends": ends}
            if adapter == "full":
                twins.append(fastmem.full(model, names, text.ids, text.context, **settings)[0])
            else:
                settings |= {"rank": 4, "seed": 0, "shape": linear_shape}
                twins.append(fastmem.lora(model, names, text.ids, text.context, **settings)[0])
        twin = reference.composed(model, twins, names)
        per_token, kl = reference.losses(model, twin, real.ids, real.context)
        before, _ = reference.losses(model, model, real.ids, real.context)
        with torch.no_grad():
            theirs = twin(input_ids=torch.tensor([real.ids])).logits[0, -1].log_softmax(-1)
    report = answer.memory
    assert report is not None
    close(spoken, theirs)
    close(report.token_losses_before, before)
    close(report.token_losses_after, per_token)
    assert report.kl == pytest.approx(kl, rel=1e-4, abs=1e-6)
    assert report.loss_before - report.loss_after > 0.01


def test_a_page_is_memorized_once_whatever_it_comes_with(make_engine: Any, trained: list[int]) -> None:
    """In any order and number, with any system message, also when it is read from a bank."""
    engine = make_engine(bank=Bank())
    first = engine.answer(ask(documents=FACTS[:2], memory=JOINED))
    assert (first.memory.reused, first.memory.steps) == (False, 6)
    one_new = engine.answer(ask(documents=[FACTS[2], FACTS[0]], memory=JOINED))
    assert (one_new.memory.reused, one_new.memory.steps) == (False, 3)
    assert trained == [2, 1]
    for documents in (FACTS[1:], FACTS[::-1], FACTS[:1]):
        request = Request(messages=SYSTEM, documents=documents, memory=JOINED, sampling=Sampling(4))
        again = engine.answer(request)
        assert (again.memory.reused, again.memory.steps) == (True, 0)
        assert again.token_ids == make_engine().answer(request).token_ids
        assert len(again.memory.tokens) > sum(len(d.split()) for d in documents)
    assert trained == [2, 1, 2, 3, 1]


def test_pages_can_be_memorized_in_advance(make_engine: Any, trained: list[int], tmp_path: Any) -> None:
    """With `Engine.memorize`, one by one, without the option. The folder has an entry for each, but none for means."""
    engine = make_engine(bank=tmp_path / "bank")
    for fact in FACTS:
        engine.memorize([fact], LORA)
    answer = make_engine(bank=tmp_path / "bank").answer(ask(documents=FACTS, memory=JOINED))
    assert answer.memory.reused
    assert trained == [1] * len(FACTS)
    assert len(Bank(tmp_path / "bank").entries()) == len(FACTS)


def test_with_a_shortlist_the_losses_are_exact_and_the_kl_is_close(make_engine: Any, tokenizer: Any) -> None:
    engine, memory = make_engine(), replace(JOINED, shortlist=250, learning_rate=0.03)
    report = engine.answer(ask(n=1, documents=FACTS, memory=memory)).memory
    prompt = PromptBuilder(tokenizer).build(
        [{"role": "user", "content": ask().question}], ask(documents=FACTS).documents
    )
    ids, places, parts = torch.tensor([prompt.ids]), [t - 1 for t in prompt.context], Backbone.of(engine.model)
    with torch.no_grad():
        before = engine.model(input_ids=ids).logits[0, places].log_softmax(-1)
        with applied(parts, stack([engine.memorize(FACTS, memory).adapter], parts)):
            after = engine.model(input_ids=ids).logits[0, places].log_softmax(-1)
    close(report.token_losses_after, -after.gather(-1, ids[0, list(prompt.context)][:, None])[:, 0])
    exact = float(F.kl_div(after, before, log_target=True, reduction="batchmean"))
    assert report.kl == pytest.approx(exact, rel=0.05)
    assert report.kl != pytest.approx(exact, rel=1e-6)  # it is an estimate


def test_equal_pages_of_a_batch_are_memorized_once_and_joined_once(make_engine: Any, trained: list[int]) -> None:
    engine = make_engine()
    sets = [FACTS[:2], FACTS[1:], [FACTS[0], FACTS[0]], FACTS[:1]]
    answers = engine.answer_batch([ask(documents=d, memory=JOINED) for d in sets])
    assert trained == [len(FACTS)]
    for documents, answer in zip(sets, answers, strict=True):
        assert answer.token_ids == engine.answer(ask(documents=documents, memory=JOINED)).token_ids
    one, twice = (engine.memorize(d, JOINED) for d in (FACTS[:1], FACTS[:1] * 2))
    for name, change in changes(one.adapter).items():
        close(changes(twice.adapter)[name], change)


def test_a_handle_of_joined_pages(make_engine: Any) -> None:
    """Equals a request's composed memory, with the sum of ranks; differs from memorizing the pages together."""
    engine = make_engine(bank=Bank())
    handle, request = engine.memorize(FACTS[:2], JOINED), ask(n=8, documents=FACTS[:2], memory=JOINED)
    assert handle.adapter.rank == 8
    parts = [changes(engine.memorize([fact], LORA).adapter) for fact in FACTS[:2]]
    for name, change in changes(handle.adapter).items():
        close(change, (parts[0][name] + parts[1][name]) / 2)
    assert engine.answer(replace(request, memory=handle)).token_ids == engine.answer(request).token_ids
    assert handle.id != engine.memorize(FACTS[:2], LORA).id


def test_ranks_that_add_up_to_more_than_the_width_are_one_full_change(make_engine: Any) -> None:
    engine = make_engine()
    wide = replace(JOINED, rank=16)
    one, handle = engine.memorize(FACTS[:1], wide), engine.memorize(FACTS * 2, wide)
    width = Backbone.of(engine.model).width
    assert one.adapter.rank == 16
    assert 16 * len(FACTS) > width
    assert handle.adapter.rank == width


def test_memories_that_do_not_go_together_are_rolled_back(make_engine: Any) -> None:
    """Each lowers the loss of its own page, but their mean raises the loss of all pages."""
    engine, wild = make_engine(), replace(JOINED, learning_rate=1.0, end=False)
    assert not any(engine.memorize([fact], wild).report.rolled_back for fact in FACTS)
    answer = engine.answer(ask(documents=FACTS, memory=wild))
    assert answer.memory.rolled_back
    assert answer.memory.loss_after > answer.memory.loss_before
    assert str(answer.memory.reason).startswith(f"the loss rose from {answer.memory.loss_before:.3f} to ")
    assert len(answer.memory.documents) == len(FACTS)
    assert answer.token_ids == engine.answer(ask(documents=FACTS)).token_ids


def test_a_document_whose_own_memory_was_rolled_back_is_left_out(make_engine: Any) -> None:
    engine = make_engine()
    kls = {fact: engine.memorize([fact], LORA).report.kl for fact in FACTS}
    *near, far = sorted(FACTS, key=lambda fact: kls[fact])
    bounded = replace(JOINED, max_kl=(kls[near[-1]] + kls[far]) / 2)
    answer, lone = (engine.answer(ask(documents=d, memory=bounded)) for d in ([far, near[0]], [far]))
    expected = engine.memorize(near[:1], bounded)
    ids = {fact: engine.memorize([fact], LORA).report.documents[0] for fact in FACTS}
    assert not answer.memory.rolled_back
    assert answer.memory.documents == (ids[near[0]],)
    assert answer.memory.left_out == (ids[far],)
    assert answer.memory.tokens == expected.report.tokens
    (said,) = answer.memory.warnings
    assert said.startswith(f"document {ids[far]} was not memorized: the KL of {kls[far]:.3f} is beyond `max_kl`")
    assert (lone.memory.rolled_back, lone.memory.reason) == (True, lone.memory.warnings[0])
    assert lone.memory.documents == ()
    assert lone.token_ids == engine.answer(ask(documents=[far])).token_ids


def test_documents_without_words(make_engine: Any) -> None:
    answer = make_engine().answer(ask(documents=["", FACTS[0]], memory=JOINED))
    assert len(answer.memory.documents) == 1
    assert answer.memory.warnings[0].endswith("was not memorized: it has no words")


def test_without_room_for_all_sums_they_are_made_one_by_one(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, real, room = make_engine(), compose.Objective, [1]

    def objective(backbone: Any, rows: Any, *args: Any) -> Any:
        if len(rows.lengths) > room[0]:
            raise torch.OutOfMemoryError("no room")
        return real(backbone, rows, *args)

    requests = [ask(documents=d, memory=JOINED) for d in (FACTS[:2], FACTS[1:])]
    expected = [engine.answer(r).token_ids for r in requests]
    monkeypatch.setattr(compose, "Objective", objective)
    answers = engine.answer_batch(requests)
    assert [(a.memory.rolled_back, a.token_ids) for a in answers] == [(False, ids) for ids in expected]
    room[0] = 0
    answer = engine.answer(requests[0])
    assert answer.memory.rolled_back
    assert answer.memory.reason == "out of memory while joining memories: no room"
    assert answer.token_ids == engine.answer(replace(requests[0], memory=None)).token_ids


def test_both_ways_share_a_batch(make_engine: Any) -> None:
    engine = make_engine()
    memories = [JOINED, LORA, None, replace(JOINED, template="assistant"), replace(JOINED, relevance="auto")]
    requests = [ask(documents=FACTS, memory=memory) for memory in memories]
    answers = engine.answer_batch(requests)
    assert [a.token_ids for a in answers] == [engine.answer(r).token_ids for r in requests]


def test_bad_settings() -> None:
    with pytest.raises(SettingsError, match="`compose` must be True or False, got 1"):
        FastMem(compose=1)  # type: ignore[arg-type]
