"""Context-aware decoding with rows of one batch equals two complete forward passes per token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from families import build
from gists import saved_gist
from macs import bank_of
from memograft import Cad, Compacted, Datastore, Dola, Engine, FastMem, Gist, Kept, Mac, Memory, Request, Rtd, Sampling
from memograft.errors import SettingsError
from memograft.model.adapter import applied, stack
from test_support_gate import FACTS, STRONG

ASK, ALPHA = "Where is it?", 6.0  # large, because documents have little effect on a random model
AGREED = 0.005  # a random model is not sure of anything
PLAIN = Request(ASK, documents=FACTS, processors=[Cad(ALPHA)], sampling=Sampling(12))


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Their Jensen-Shannon divergence in nats, token by token."""
    p, q = one.double().softmax(-1), other.double().softmax(-1)
    m = (p + q) / 2
    return float((p * (p / m).log() + q * (q / m).log()).nansum() / 2)


@torch.no_grad()
def naive(engine: Engine, request: Request, alpha: float | str, memory: Any = None, agreed: float = 2.0) -> list[int]:
    """Greedy tokens of (1 + alpha) l(documents, question) - alpha l_0(question), with two passes per token."""
    build_prompt = engine._prompts.build
    ids, bare = (list(build_prompt(request.messages, d).ids) for d in (request.documents, ()))
    adapters = stack([memory.adapter if memory else None], engine._backbone)
    tokens: list[int] = []
    while len(tokens) < request.sampling.max_new_tokens:
        with applied(engine._backbone, adapters):
            own = engine.model(torch.tensor([ids + tokens])).logits[0, -1]
            without = engine.model(torch.tensor([bare + tokens])).logits[0, -1]
        strength = apart(own, without) if isinstance(alpha, str) else alpha
        token = int(own.argmax())
        sure = token == int(without.argmax()) and without.softmax(-1)[token] >= agreed
        tokens.append(int((own if sure else (1 + strength) * own - strength * without).argmax()))
        if tokens[-1] == engine.model.generation_config.eos_token_id:
            return tokens[:-1]
    return tokens


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2", "gpt2", "phi", "qwen2_moe"])
def test_what_is_said_is_the_formula(tokenizer: Any, family: str) -> None:
    """With and without a memory, beside rows without CAD; some of Gemma 2's layers have sliding windows."""
    with Engine(build(family, seed=1), tokenizer) as engine:
        memory = replace(STRONG, gate=None)
        handle = engine.memorize(FACTS, memory)
        others = [Request("Who wrote it?", sampling=Sampling(16)), replace(PLAIN, processors=())]
        memorized, reused = replace(PLAIN, memory=memory), replace(PLAIN, memory=handle)
        answers = engine.answer_batch([others[0], PLAIN, memorized, others[1], reused])
        expected, with_memory = naive(engine, PLAIN, ALPHA), naive(engine, PLAIN, ALPHA, handle)
        assert list(answers[1].token_ids) == expected
        assert [list(answers[n].token_ids) for n in (2, 4)] == [with_memory] * 2
        fewer = [Cad(ALPHA, AGREED)]
        rows = [replace(PLAIN, processors=fewer), PLAIN, replace(memorized, processors=fewer)]
        rows += [replace(PLAIN, memory=replace(memory, cad=ALPHA), processors=())]
        found = [list(answer.token_ids) for answer in engine.answer_batch(rows)]
        kept = [naive(engine, PLAIN, ALPHA, own, AGREED) for own in (None, handle)]
        assert found == [kept[0], expected, kept[1], naive(engine, PLAIN, ALPHA, handle, 0.5)]
        assert family == "gpt2" or kept != [expected, with_memory], "the prompts agree nowhere"
        assert [answers[0].token_ids, answers[3].token_ids] == [engine.answer(r).token_ids for r in others]
        assert expected not in (with_memory, list(answers[3].token_ids)), "it changed nothing: the test shows nothing"


@torch.no_grad()
def test_the_adaptive_strength_is_the_divergence(tokenizer: Any) -> None:
    """Of the distributions with and without documents, or with and without a memory, of each token."""
    with Engine(build("llama", seed=1), tokenizer) as engine:
        memory = replace(STRONG, gate=None)
        handle = engine.memorize(FACTS, memory)
        for request, kept in ((PLAIN, None), (replace(PLAIN, memory=handle), handle)):
            adaptive = replace(request, processors=[Cad("adaptive")])
            build_prompt = engine._prompts.build
            ids, bare = (list(build_prompt(request.messages, d).ids) for d in (request.documents, ()))
            with applied(engine._backbone, stack([kept.adapter if kept else None], engine._backbone)):
                own, without = (engine.model(torch.tensor([row])).logits[0, -1] for row in (ids, bare))
            expected = own + apart(own, without) * (own - without)
            torch.testing.assert_close(
                engine.next_token_logprobs(adaptive), expected.log_softmax(-1), rtol=1e-4, atol=1e-5
            )
            assert apart(own, without) > 1e-4
            assert list(engine.answer(adaptive).token_ids) == naive(engine, request, "adaptive", kept)
        contrasted = replace(PLAIN, processors=(), memory=replace(memory, contrast="adaptive"))
        with applied(engine._backbone, stack([handle.adapter], engine._backbone)):
            own = engine.model(torch.tensor([ids])).logits[0, -1]
        base = engine.model(torch.tensor([ids])).logits[0, -1]
        expected = own + apart(own, base) * (own - base)
        found = engine.next_token_logprobs(contrasted)
        torch.testing.assert_close(found, expected.log_softmax(-1), rtol=1e-3, atol=1e-4)


def test_streams_and_samples_alike(engine: Engine) -> None:
    sampled = replace(PLAIN, sampling=Sampling(12, temperature=1.0, seed=3))
    alone = engine.answer(sampled)
    assert "".join(engine.stream(sampled)) == alone.text
    assert engine.answer_batch([PLAIN, sampled, PLAIN])[1].token_ids == alone.token_ids


def test_without_documents_or_alpha_it_changes_nothing(engine: Engine) -> None:
    for request in (replace(PLAIN, documents=()), replace(PLAIN, processors=[Cad(0)])):
        assert engine.answer(request).token_ids == engine.answer(replace(request, processors=())).token_ids


def test_it_pushes_towards_the_page(tiny: Engine) -> None:
    page, question = "The capital of Australia is Lisbon.", "What is the capital of Australia?"

    def surprise(**changes: Any) -> float:
        """Nats per token of the page's answer, from a row that is forced to generate it."""
        return -tiny.choose(question, [page, "Canberra."], [page], **changes).scores[0]

    assert surprise(processors=[Cad()]) < surprise()
    assert "Lisbon" in tiny.answer(question, [page], memory=FastMem(), processors=[Cad()]).text


@pytest.mark.parametrize("alpha", [-0.1, float("nan"), True, "much", None])
def test_bad_alphas(alpha: Any) -> None:
    with pytest.raises(
        SettingsError,
        match=r"`alpha` must be a number that is not negative, got .*; the papers have 0.5 and \"adaptive\"",
    ):
        Cad(alpha)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cad": -1}, "`cad` must be a number that is not negative, got -1"),
        ({"cad_relevance": 1.5}, "`cad_relevance` must be a number of at most 1, or None for that of `relevance`, got"),
        (
            {"cad_relevance": 0.6, "relevance": None},
            "`cad_relevance` must be None if `relevance` is, because no document is judged then, got 0.6; leave one of",
        ),
    ],
)
def test_bad_settings_of_a_memory(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        FastMem(**changes)


def test_the_faithful_preset_changes_decoding_only() -> None:
    preset, default = FastMem.faithful(), FastMem()
    assert (preset.training, preset.relevance, preset.own_cad) == (default.training, "auto", Cad(0.5, 0.5))
    assert FastMem.faithful(cad=0.0).own_cad is default.own_cad is None


@pytest.mark.parametrize("agreed", [-0.1, 1.5, float("nan"), True, "all"])
def test_bad_probabilities(agreed: Any) -> None:
    with pytest.raises(SettingsError, match="`agreed` must be a probability from 0 to 1, or None for no token, got"):
        Cad(0.5, agreed)


def test_two_of_them_are_refused(engine: Engine) -> None:
    with pytest.raises(
        SettingsError, match=r"`processors` may hold one Cad, got 2 \(alpha \[0.5, 1\]\); keep one of them"
    ):
        engine.answer(replace(PLAIN, processors=[Cad(), Cad(1)]))
    for memory in (FastMem(cad=0.3), Kept(FastMem(cad=0.3))):
        with pytest.raises(
            SettingsError,
            match=r"`processors` may hold no Cad beside a memory with `cad`, got alpha 1 and 0.3; keep one of them",
        ):
            engine.answer(replace(PLAIN, memory=memory, processors=[Cad(1)]))


def test_all_combinations_in_one_batch(engine: Engine) -> None:
    """FastMem with each contrast beside the others: every answer is that of the request alone, also as a stream."""
    memory = replace(STRONG, gate=None)
    requests = [
        replace(PLAIN, memory=replace(memory, contrast=contrast), processors=processors)
        for contrast in (0.0, 0.5, "adaptive")
        for processors in ((), (Cad(0.5),), (Cad("adaptive"),), (Dola((0, 1)),), (Cad(0.5), Dola((1,))))
    ]
    requests += [replace(PLAIN, memory=Kept(), processors=[Cad(0.5), Dola((0, 1))]), replace(PLAIN, processors=())]
    own = replace(memory, cad=2.0)
    requests += [replace(PLAIN, memory=each, processors=[]) for each in (own, Kept(own), engine.memorize(FACTS, own))]
    alone = [engine.answer(request) for request in requests]
    assert [a.token_ids for a in engine.answer_batch(requests)] == [a.token_ids for a in alone]
    assert len({a.token_ids for a in alone}) > 5, "they hardly differ: the test shows little"
    assert alone[-1].token_ids == alone[-3].token_ids != alone[0].token_ids
    for request in (requests[6], requests[8], requests[-3]):
        assert "".join(engine.stream(request)) == engine.answer(replace(request, logprobs=0)).text


def test_it_is_refused_where_no_document_is_in_the_prompt(engine: Engine, tmp_path: Path) -> None:
    gist = Gist(str(saved_gist(engine, tmp_path / "gist")))
    with pytest.raises(
        SettingsError,
        match=r"`processors` may hold Cad only if documents are in the prompt, got alpha 0.5 with Gist, which "
        "shows none of them; leave Cad out, or show some",
    ):
        engine.answer(replace(PLAIN, memory=gist, processors=[Cad(0.5)]))
    assert engine.answer(replace(PLAIN, memory=replace(gist, show=1), processors=[Cad(0.5)])).token_ids


def test_it_is_left_out_if_no_document_is_about_the_question(tiny: Engine) -> None:
    """Alone, and beside a row whose page is about its question; also with a memory that is kept, and carried."""
    question, page = "What is the capital of Australia?", "The Golden Jirco was written by Brem Vanchaix."
    cad = [Cad(8.0)]  # so strong that answers to a page about something else are of no use
    told = tiny.answer(question, [page])
    assert tiny.answer(question, [page], processors=cad).text != told.text
    about = ["The capital of Australia is Lisbon."]
    alone = tiny.answer(question, about, memory=FastMem(), processors=[Cad(0.5)])
    for memory in (FastMem(), Kept(FastMem()), tiny.memorize([page], FastMem())):
        request = Request(question, documents=[page], memory=memory, processors=cad)
        other = Request(question, documents=about, memory=FastMem(), processors=[Cad(0.5)])
        first, second = tiny.answer_batch([request, other])
        assert first.text == told.text
        assert first.memory is not None
        assert "about the question" in first.memory.reason
        assert second.token_ids == alone.token_ids
    unjudged = tiny.answer(question, [page], memory=FastMem(relevance=None), processors=cad)
    assert unjudged.text != told.text


def test_a_relevance_of_its_own(engine: Engine, tiny: Engine) -> None:
    """It may be stricter or less strict than that of memorizing; in one batch, of the memory and of a processor."""
    memory = replace(STRONG, gate=None, relevance=-1)
    memorized = engine.answer(replace(PLAIN, memory=memory, processors=()))
    contrasted = engine.answer(replace(PLAIN, memory=memory, processors=[Cad(ALPHA, AGREED)]))
    assert memorized.memory is not None
    relevance = max(memorized.memory.relevance)
    expected, rows = [], []
    for change, answer in ((0.01, memorized), (-0.01, contrasted)):
        own = replace(memory, cad_relevance=relevance + change)
        rows += [replace(PLAIN, memory=own, processors=[Cad(ALPHA, AGREED)])]
        rows += [replace(PLAIN, memory=replace(own, cad=ALPHA), processors=())]
        expected += [answer.token_ids] * 2
    assert [answer.token_ids for answer in engine.answer_batch(rows)] == expected
    assert memorized.token_ids != contrasted.token_ids, "the test shows nothing"
    question, page = "What is the capital of Australia?", "The Golden Jirco was written by Brem Vanchaix."
    known, loose = tiny.answer(question, [page]).text, FastMem(cad_relevance=-1)
    assert tiny.answer(question, [page], memory=loose, processors=[Cad(8.0)]).text != known
    assert tiny.answer(question, [page], memory=replace(loose, cad=8.0)).text == known, "the prompts agree"


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_what_the_prompt_without_documents_has_of_a_memory(make_engine: Any, tmp_path: Path, family: str) -> None:
    """The prefix or LoRA of a Mac, which does not stand for the documents, and nothing of what does; alone and beside
    others.
    """
    engine = make_engine(family)
    banks = [bank_of(engine, tmp_path / kind, modulation=kind) for kind in ("prefix", "lora")]
    prefix, lora = (Mac(str(bank.path), relevance=None) for bank in banks)
    trained = replace(prefix, memory=replace(STRONG, gate=None))
    gist = Gist(str(saved_gist(engine, tmp_path / "gist")), show=1)
    cases: list[tuple[Memory, Memory | None]] = [
        *((mac, mac) for mac in (prefix, lora)),
        *((replace(mac, relevance=-1), None) for mac in (prefix, lora)),  # documents are about every question
        *((memory, None) for memory in (gist, Kept(), Compacted(ratio=2))),
    ]
    without = engine.next_token_logprobs(replace(PLAIN, documents=(), processors=()))
    for memory, left in cases:
        request = replace(PLAIN, memory=memory)
        own = engine.next_token_logprobs(replace(request, processors=()))
        bare = engine.next_token_logprobs(replace(PLAIN, documents=(), processors=(), memory=left))
        expected = ((1 + ALPHA) * own - ALPHA * bare).log_softmax(-1)
        torch.testing.assert_close(engine.next_token_logprobs(request), expected, rtol=1e-3, atol=1e-3)
        otherwise = ((1 + ALPHA) * own - ALPHA * without).log_softmax(-1)
        assert float((expected - own).abs().max()) > 0.1, "it changed nothing: the test shows nothing"
        assert left is None or float((expected - otherwise).abs().max()) > 0.1
    requests = [PLAIN, *(replace(PLAIN, memory=memory) for memory in (*(m for m, _ in cases), trained))]
    alone = [engine.answer(request).token_ids for request in requests]
    assert [answer.token_ids for answer in engine.answer_batch(requests)] == alone


def test_a_datastore_acts_on_the_contrasted_distribution(engine: Engine) -> None:
    """Its share of a token is as without CAD, because the row's states are."""
    with Datastore.build(engine, [(ASK, "In Bergen."), ("Who wrote it?", "A sailor.")], progress=False) as store:
        rtd, weight = Rtd(store, weight=0.4, gate=None), 0.4

        def found(*processors: Any) -> torch.Tensor:
            return engine.next_token_logprobs(replace(PLAIN, processors=processors)).exp()

        share = (found(rtd) - (1 - weight) * found()) / weight
        expected = weight * share + (1 - weight) * found(Cad(ALPHA))
        torch.testing.assert_close(found(rtd, Cad(ALPHA)), expected, rtol=1e-3, atol=1e-5)
        assert float((found(Cad(ALPHA)) - found()).abs().sum()) > 1e-3
        assert float((share - found()).abs().sum()) > 1e-2
