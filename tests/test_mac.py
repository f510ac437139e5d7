"""`Mac` and `MacBank`: documents are added once, and answers come from the bank. The networks are random."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from families import build
from gists import parts_of, saved_gist
from macs import MORE, bank_of, saved_mac
from memograft import Bank, Cad, Datastore, Document, Engine, FastMem, Gist, Kept, Mac, MacBank, Memory, Request, Rtd
from memograft.decoding.tap import Tap
from memograft.errors import (
    MemoryFormatError,
    PromptTooLongError,
    RequestCancelledError,
    SettingsError,
    UnsupportedModelError,
)
from memograft.memory.base import Task, Wanted
from memograft.memory.gist.compress import opening
from memograft.memory.mac import folder
from memograft.memory.mac.networks import CrossAttention
from memograft.serving.scoring import logprobs_of
from reference.mac import changed, prefixed
from test_engine import FACTS, ask
from tokenizers_ import make

LORA = FastMem(steps=2, learning_rate=0.05, rank=4, target_kl=None, max_kl=1e9, fallback=False, relevance=None)


@pytest.fixture
def mac(engine: Engine, tmp_path: Path) -> Mac:
    return Mac(str(bank_of(engine, tmp_path).path))


def first_logprobs(engine: Engine, requests: list[Request]) -> list[torch.Tensor]:
    return [logprobs_of(tap) for tap in engine.tapped(requests, [Tap() for _ in requests])]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "qwen3"])
@torch.no_grad()
def test_an_answer_is_that_of_the_method_written_out(make_engine: Any, tmp_path: Path, family: str) -> None:
    engine = make_engine(family)
    bank = bank_of(engine, tmp_path, tokens=4)
    model, question = parts_of(engine), ask().messages
    weights, prompt = bank.weights(model.backbone), model.prompts.build(question)
    states = weights.questions(model.backbone, [prompt.ids], 0)
    found = weights.networks.aggregate(states, bank.modulations().float())[0]
    own = opening(model.prompts, prompt)
    assert own.spared > 0
    expected = prefixed(model.backbone.model, weights, found, own.spared, prompt.ids)[-1].log_softmax(-1)
    memory = Mac(str(bank.path))
    torch.testing.assert_close(engine.next_token_logprobs(ask(memory=memory)), expected, rtol=1e-4, atol=1e-5)
    answer = engine.answer(ask(memory=memory))
    assert answer.memory is not None
    assert answer.memory.reason == f"answered from the bank in {bank.path}, and nothing was trained"
    assert answer.memory.settings == memory.resolved().to_json()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@torch.no_grad()
def test_a_lora_of_what_was_found_acts_on_the_last_ffn(make_engine: Any, tmp_path: Path, family: str) -> None:
    """The prompt is the plain one, with documents too, and its keys and values are exact."""
    engine = make_engine(family)
    bank = bank_of(engine, tmp_path, modulation="lora")
    model, memory = parts_of(engine), Mac(str(bank.path), relevance=None)
    weights = bank.weights(model.backbone)
    states = weights.questions(model.backbone, [model.prompts.build(ask().messages).ids], 0)
    found = weights.networks.aggregate(states, bank.modulations().float())[0]
    for documents in ((), tuple(map(Document, FACTS[:2]))):
        ids = model.prompts.build(ask().messages, documents).ids
        expected = changed(model.backbone.model, model.backbone.projections, weights, found, ids)[-1].log_softmax(-1)
        own = engine.next_token_logprobs(ask(documents=documents, memory=memory))
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
    assert engine.answer(ask(memory=memory)).usage == engine.answer(ask()).usage


@pytest.mark.parametrize("modulation", ["prefix", "lora"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mistral"])
def test_documents_about_the_question_or_the_bank(
    make_engine: Any, tmp_path: Path, family: str, modulation: str
) -> None:
    engine = make_engine(family)
    both = Mac(str(bank_of(engine, tmp_path, modulation=modulation).path), relevance=None)
    judged = engine.answer(ask(documents=FACTS, memory=FastMem(steps=1))).memory
    assert judged is not None
    highest = max(judged.relevance)
    from_documents, from_bank = (replace(both, relevance=highest + change) for change in (-0.01, 0.01))
    plain, alone, used = (
        engine.next_token_logprobs(ask(documents=documents, memory=memory))
        for documents, memory in ((FACTS, None), ((), both), (FACTS, both))
    )
    for a, b in ((plain, alone), (plain, used), (alone, used)):
        assert float((a - b).abs().max()) > 1e-3, "they are alike: the test shows nothing"
    for memory, expected in ((from_documents, plain), (from_bank, alone)):
        own = engine.next_token_logprobs(ask(documents=FACTS, memory=memory))
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)

    answer = engine.answer(ask(documents=FACTS, memory=from_documents))
    assert answer.token_ids == engine.answer(ask(documents=FACTS)).token_ids
    assert (answer.usage.cached_tokens, len(answer.documents)) == (0, len(FACTS)), "they were read for this request"
    assert answer.memory is not None
    assert answer.memory.reason == (
        "answered from the documents and not from the bank, because one of them is about the question"
    )
    assert answer.memory.relevance == pytest.approx(judged.relevance, abs=1e-5)
    answer = engine.answer(ask(documents=FACTS, memory=from_bank))
    assert answer.usage == engine.answer(ask(memory=both)).usage
    assert answer.documents == ()
    assert answer.memory is not None
    assert answer.memory.reason == f"answered from the bank in {both.bank}, and nothing was trained"
    assert answer.memory.left_out == tuple(Document(fact).id for fact in FACTS)
    assert answer.memory.relevance == pytest.approx(judged.relevance, abs=1e-5)


def test_a_kept_memory_of_hidden_documents_is_left_out(engine: Engine, mac: Mac) -> None:
    alone = engine.next_token_logprobs(ask(memory=mac))
    hidden = replace(mac, relevance=1)
    for memory in (hidden, replace(hidden, memory=LORA)):
        handle = engine.memorize(FACTS, memory)
        for own in (memory, handle):
            found = engine.next_token_logprobs(ask(documents=FACTS, memory=own))
            torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-5)


def test_a_mixed_batch_is_as_each_alone(engine: Engine, mac: Mac, tmp_path: Path) -> None:
    examples = Datastore.build(engine, [("Who wrote it?", "A sailor."), ("Where?", "In Bergen.")], progress=False)
    other = MacBank(tmp_path / "other", tmp_path / "mac")
    other.add(engine, MORE, progress=False)
    lora = Mac(str(bank_of(engine, tmp_path / "lora", modulation="lora").path))
    gist = Gist(str(saved_gist(engine, tmp_path / "gist", window=64)))
    requests = [
        ask(documents=FACTS),
        ask(memory=mac),
        ask("Which numbers, and where?", memory=mac),
        ask(memory=Mac(str(other.path))),
        ask(memory=Mac(str(other.path), group=2)),
        ask(documents=FACTS[:2], memory=replace(mac, relevance=None)),
        ask(documents=FACTS[:2], memory=replace(mac, relevance=-1)),
        ask(documents=FACTS[:2], memory=replace(mac, relevance=1)),
        ask(documents=FACTS, memory=replace(lora, relevance=1, memory=LORA), processors=[Cad(0.5)]),
        ask(documents=FACTS, memory=replace(mac, relevance=-1, memory=LORA)),
        ask(documents=FACTS, memory=replace(lora, relevance=-1)),
        ask(documents=FACTS, memory=LORA),
        ask(documents=FACTS, memory=replace(mac, memory=LORA)),
        ask("Which numbers, and where?", documents=FACTS, memory=replace(mac, memory=LORA)),
        ask(documents=FACTS, memory=Mac(str(other.path), memory=LORA)),
        ask(memory=lora),
        ask("Which numbers, and where?", documents=FACTS, memory=lora),
        ask(documents=FACTS, memory=replace(lora, memory=LORA)),
        ask(documents=FACTS, memory=gist),
        ask(documents=FACTS, memory=Kept()),
        ask(memory=mac, processors=[Rtd(examples, weight=0.8, gate=None)]),
    ]
    together = first_logprobs(engine, requests)
    for request, found in zip(requests, together, strict=True):
        torch.testing.assert_close(found, engine.next_token_logprobs(request), rtol=1e-5, atol=1e-5)
    assert float((together[1] - together[3]).abs().max()) > 1e-4
    alone = [engine.answer(request).token_ids for request in requests]
    assert [answer.token_ids for answer in engine.answer_batch(requests)] == alone
    examples.close()


def test_plain_answers_are_bit_for_bit_those_of_the_model(engine: Engine, mac: Mac) -> None:
    plain = ask(documents=FACTS)
    weights = {name: weight.clone() for name, weight in engine.model.state_dict().items()}
    before = engine.next_token_logprobs(plain)
    engine.answer_batch([ask(memory=mac), plain])
    assert torch.equal(engine.next_token_logprobs(plain), before)
    assert all(torch.equal(weights[name], weight) for name, weight in engine.model.state_dict().items())
    assert not any(module._forward_hooks for module in engine.model.modules())


def test_documents_may_be_memorized_too(engine: Engine, mac: Mac) -> None:
    both = engine.answer(ask(documents=FACTS, memory=replace(mac, memory=LORA)))
    assert both.memory is not None
    assert both.memory.steps == 2
    assert [document.text for document in both.documents] == FACTS
    handle = engine.memorize(FACTS, replace(mac, memory=LORA))
    again = engine.answer(ask(memory=handle))
    assert again.memory is not None
    assert again.memory.reused


def test_what_is_memorized_depends_on_no_bank(make_engine: Any, mac: Mac, tmp_path: Path) -> None:
    """So a bank of memories may give it to other requests, and a handle is like a request."""
    clean = make_engine().next_token_logprobs(ask("Where?", documents=FACTS, memory=LORA))
    engine = make_engine(bank=Bank(tmp_path / "memories"))
    both = engine.next_token_logprobs(ask(documents=FACTS, memory=replace(mac, memory=LORA)))
    torch.testing.assert_close(
        engine.next_token_logprobs(ask("Where?", documents=FACTS, memory=LORA)), clean, rtol=1e-5, atol=1e-5
    )
    handle = make_engine().memorize(FACTS, replace(mac, memory=LORA))
    torch.testing.assert_close(engine.next_token_logprobs(ask(memory=handle)), both, rtol=1e-5, atol=1e-5)


def test_a_prompt_that_is_too_long_says_what_the_prefix_takes(make_engine: Any, tmp_path: Path) -> None:
    engine = make_engine(max_length=120)
    memory = Mac(str(bank_of(engine, tmp_path).path))
    with pytest.raises(PromptTooLongError, match=r"\(120 positions minus the room for an answer, 67 of its memory\)"):
        engine.answer(ask("Where? " * 30, memory=memory))


def test_giving_up_ends_the_search(engine: Engine, mac: Mac) -> None:
    """Others may use the model between two questions."""
    model, calls = parts_of(engine), list[None]()
    prompt = model.prompts.build(ask().messages)
    task = Task(lambda: calls.append(None) or len(calls) == 2)  # type: ignore[func-returns-value]
    with pytest.raises(RequestCancelledError, match="given up while its documents were looked for in a bank"):
        Mac.before(model, [Wanted(mac, prompt, n, task=task) for n in range(3)])
    assert len(calls) == 2


def test_an_empty_bank_answers_plainly(engine: Engine, tmp_path: Path) -> None:
    empty = MacBank(tmp_path / "bank", saved_mac(engine, tmp_path / "mac"))
    assert (len(empty), empty.ids, empty.nbytes) == (0, (), 0)
    for documents in ((), FACTS):
        answer = engine.answer(ask(documents=documents, memory=Mac(str(empty.path), relevance=1)))
        assert answer.token_ids == engine.answer(ask(documents=documents)).token_ids


def test_a_request_sees_what_was_added_before_it(engine: Engine, mac: Mac) -> None:
    bank = MacBank(mac.bank)
    before = engine.next_token_logprobs(ask(memory=mac))
    assert bank.add(engine, MORE[:1], progress=False) == 1
    after = engine.next_token_logprobs(ask(memory=mac))
    assert not torch.equal(before, after)
    assert bank.remove([Document(MORE[0]).id]) == 1
    torch.testing.assert_close(engine.next_token_logprobs(ask(memory=mac)), before, rtol=1e-5, atol=1e-5)


def test_a_bank_may_be_read_in_groups(engine: Engine, mac: Mac, monkeypatch: pytest.MonkeyPatch) -> None:
    MacBank(mac.bank).add(engine, MORE, progress=False)
    at_once, read, norm = engine.next_token_logprobs(ask(memory=mac)), list[int](), CrossAttention._plain
    monkeypatch.setattr(CrossAttention, "_plain", lambda self, bank: (read.append(len(bank)), norm(self, bank))[1])
    grouped = engine.next_token_logprobs(ask(memory=replace(mac, group=2)))
    torch.testing.assert_close(grouped, at_once, rtol=1e-5, atol=1e-5)
    assert max(read) == 6, "three tokens of each of two modulations"
    assert sum(read) == 2 * 3 * len(MacBank(mac.bank)), "two blocks"


def test_a_mac_is_written_and_read(engine: Engine, tmp_path: Path) -> None:
    backbone = parts_of(engine).backbone
    path = saved_mac(engine, tmp_path / "mac")
    weights, about = folder.read(path, backbone), folder.about(path)
    assert (about.tokens, about.window, about.blocks, about.on_documents) == (3, 64, 2, True)
    folder.write(tmp_path / "again", weights, backbone, engine.fingerprint, {"steps": 0})
    read = folder.read(tmp_path / "again", backbone).named
    assert read.keys() == weights.named.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in weights.named.items())
    assert folder.about(tmp_path / "again").id == about.id
    assert folder.inspected(path).damaged == {}
    (path / "mac.safetensors").write_bytes(b"x")
    with pytest.raises(MemoryFormatError, match=r"mac\.safetensors is damaged"):
        folder.read(path, backbone)


def test_a_model_without_positions_is_refused(tmp_path: Path, engine: Engine, mac: Mac) -> None:
    model = build("falcon", changes={"alibi": True})
    with Engine(model, make("bpe")) as other:
        weights = folder.read(Path(mac.bank) / "mac", parts_of(engine).backbone)
        folder.write(tmp_path / "own", weights, parts_of(engine).backbone, other.fingerprint, {})
        bank = MacBank(tmp_path / "falcon", tmp_path / "own")
        with pytest.raises(UnsupportedModelError, match="learned tokens are embeddings at positions of their own"):
            other.answer(ask(memory=Mac(str(bank.path))))


def test_an_engine_with_a_bank_keeps_no_prefix_of_it(make_engine: Any, mac: Mac, tmp_path: Path) -> None:
    """The documents' keys and values stand behind the prefix, so they are not those of other requests."""
    engine = make_engine(bank=Bank(tmp_path / "memories", prefix_files="exact"))
    mac = replace(mac, relevance=None)
    with_mac = engine.next_token_logprobs(ask(documents=FACTS, memory=mac))
    plain = engine.next_token_logprobs(ask(documents=FACTS))
    assert not torch.equal(with_mac, plain)
    torch.testing.assert_close(plain, make_engine().next_token_logprobs(ask(documents=FACTS)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(engine.next_token_logprobs(ask(documents=FACTS, memory=mac)), with_mac)


def test_settings() -> None:
    memory = Mac("somewhere", group=4, memory=FastMem(steps=3))
    assert Memory.from_json(memory.to_json()) == memory
    assert memory.resolved({"relevance": 0.4}).relevance == 0.4
    assert memory.resolved().relevance == 0.5
    said = '`relevance` must be "auto", a number of at most 1, or None to always use the bank, got 2'
    for values, rule in {("", None): "`bank`", ("x", 1): "`group`", ("x", None, 2): said}.items():
        with pytest.raises(SettingsError, match=rule):
            Mac(*values)
