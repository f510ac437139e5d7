"""`Mac` and `MacBank`: documents are added once, and answers come from the bank. The networks are random."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from families import build
from gists import parts_of, saved_gist
from macs import saved_mac
from memograft import Bank, Datastore, Document, Engine, FastMem, Gist, Kept, Mac, MacBank, Memory, Request, Rtd
from memograft.decoding.tap import Tap
from memograft.errors import (
    MemoryFormatError,
    PromptTooLongError,
    RequestCancelledError,
    SettingsError,
    StoreLockedError,
    UnsupportedModelError,
)
from memograft.memory.base import Task, Wanted
from memograft.memory.gist.compress import opening, parts
from memograft.memory.mac import folder
from memograft.memory.mac.bank import inspected
from memograft.memory.mac.networks import hierarchical
from memograft.serving.scoring import logprobs_of
from memograft.storage.locks import WriterLock
from reference.mac import changed, prefixed
from test_engine import FACTS, ask
from tokenizers_ import make

LORA = FastMem(steps=2, learning_rate=0.05, rank=4, target_kl=None, max_kl=1e9, fallback=False, relevance=None)
MORE = [f"{fact} That is number {n}." for n, fact in enumerate(FACTS * 2)]


def bank_of(engine: Engine, path: Path, texts: Any = FACTS, **options: Any) -> MacBank:
    bank = MacBank(path / "bank", saved_mac(engine, path / "mac", **options))
    bank.add(engine, texts, progress=False)
    return bank


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
    assert answer.memory.settings == memory.to_json()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@torch.no_grad()
def test_a_lora_of_what_was_found_acts_on_the_last_ffn(make_engine: Any, tmp_path: Path, family: str) -> None:
    """The prompt is the plain one, with documents too, and its keys and values are exact."""
    engine = make_engine(family)
    bank = bank_of(engine, tmp_path, modulation="lora")
    model, memory = parts_of(engine), Mac(str(bank.path))
    weights = bank.weights(model.backbone)
    states = weights.questions(model.backbone, [model.prompts.build(ask().messages).ids], 0)
    found = weights.networks.aggregate(states, bank.modulations().float())[0]
    for documents in ((), tuple(map(Document, FACTS[:2]))):
        ids = model.prompts.build(ask().messages, documents).ids
        expected = changed(model.backbone.model, model.backbone.projections, weights, found, ids)[-1].log_softmax(-1)
        own = engine.next_token_logprobs(ask(documents=documents, memory=memory))
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
    assert engine.answer(ask(memory=memory)).usage == engine.answer(ask()).usage


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
        ask(documents=FACTS[:2], memory=mac),
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
    answer = engine.answer(ask(memory=Mac(str(empty.path))))
    assert answer.token_ids == engine.answer(ask()).token_ids


def test_a_request_sees_what_was_added_before_it(engine: Engine, mac: Mac) -> None:
    bank = MacBank(mac.bank)
    before = engine.next_token_logprobs(ask(memory=mac))
    assert bank.add(engine, MORE[:1], progress=False) == 1
    after = engine.next_token_logprobs(ask(memory=mac))
    assert not torch.equal(before, after)
    assert bank.remove([Document(MORE[0]).id]) == 1
    torch.testing.assert_close(engine.next_token_logprobs(ask(memory=mac)), before, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_groups_are_aggregated(engine: Engine, mac: Mac) -> None:
    MacBank(mac.bank).add(engine, MORE, progress=False)
    bank, model = MacBank(mac.bank), parts_of(engine)
    weights, prompt = bank.weights(model.backbone), model.prompts.build(ask().messages)
    states = weights.questions(model.backbone, [prompt.ids], 0)
    (found,) = hierarchical(weights.networks, states, bank.modulations().float(), 2)
    own = opening(model.prompts, prompt)
    expected = prefixed(model.backbone.model, weights, found, own.spared, prompt.ids)[-1].log_softmax(-1)
    grouped = engine.next_token_logprobs(ask(memory=replace(mac, group=2)))
    torch.testing.assert_close(grouped, expected, rtol=1e-4, atol=1e-5)


class TestBank:
    """A bank's folder: what is added, replaced, removed and merged, and what happens to damage."""

    def test_documents_are_added_once(self, engine: Engine, mac: Mac) -> None:
        bank = MacBank(mac.bank)
        assert bank.add(engine, [*FACTS, *MORE[:2], MORE[0]], progress=False) == 2
        assert bank.add(engine, MORE[:2], progress=False) == 0
        assert bank.ids == tuple(Document(text).id for text in [*FACTS, *MORE[:2]])
        assert len(bank) == len(bank.entries) == len(FACTS) + 2
        assert bank.nbytes == bank.modulations().nbytes

    @torch.no_grad()
    def test_each_has_the_modulation_that_it_has_alone(self, engine: Engine, mac: Mac) -> None:
        bank, model = MacBank(mac.bank), parts_of(engine)
        weights = bank.weights(model.backbone)
        for text, own in zip(FACTS, bank.modulations(), strict=True):
            (ids,) = parts(model.prompts, Document(text), weights.window)
            torch.testing.assert_close(
                weights.documents(model.backbone, [ids], 0)[0], own.float(), rtol=2e-3, atol=2e-3
            )

    def test_a_long_document_has_several(self, engine: Engine, mac: Mac) -> None:
        long = Document(" ".join(FACTS * 3), "long")
        bank = MacBank(mac.bank)
        bank.add(engine, [long], progress=False)
        assert sum(entry.ids == ("long",) for entry in bank.entries) > 1
        assert bank.remove(["long", "nowhere"]) == 1
        assert len(bank) == len(FACTS)

    def test_another_text_of_the_same_id_replaces_it(self, engine: Engine, mac: Mac) -> None:
        bank = MacBank(mac.bank)
        bank.add(engine, [Document(FACTS[0], "page")], progress=False)
        old = bank.modulations()[-1]
        assert bank.add(engine, [Document(FACTS[0], "page")], progress=False) == 0
        assert bank.add(engine, [Document(FACTS[1], "page")], progress=False) == 1
        assert (len(bank), len(bank.entries)) == (len(FACTS) + 1, len(FACTS) + 1)
        assert not torch.equal(bank.modulations()[-1], old)

    def test_documents_that_cannot_be_added(self, engine: Engine, mac: Mac) -> None:
        """They are refused before anything is computed or written."""
        bank = MacBank(mac.bank)
        before = bank.modulations()
        with pytest.raises(SettingsError, match=r"a document must have text to be added, got none in 'p'"):
            bank.add(engine, [MORE[0], Document(" ", "p")], progress=False)
        with pytest.raises(SettingsError, match=r"an id must stand for one text, got two for 'q'; give each document"):
            bank.add(engine, [Document("one", "q"), Document("two", "q")], progress=False)
        with pytest.raises(SettingsError, match="`most` must be at least 1 modulation, got 0"):
            bank.add(engine, MORE, most=0, progress=False)
        with pytest.raises(SettingsError, match=r"`ids` must be a list, got the string 'q'; write \['q'\]"):
            bank.remove("q")
        assert torch.equal(bank.modulations(), before)
        assert bank.add(engine, FACTS, most=1, progress=False) == 0
        assert len(bank.entries) == 1

    @torch.no_grad()
    def test_merging_in_steps_is_the_mean(self, engine: Engine, mac: Mac) -> None:
        """Of a long document's parts too, which have one id."""
        bank = MacBank(mac.bank)
        bank.remove(bank.ids)
        bank.add(engine, [Document(" ".join(FACTS * 3), "long")], progress=False)
        mean = bank.modulations().float().mean(0)
        for most in range(len(bank.entries), 0, -1):
            bank.merge(most)
        torch.testing.assert_close(bank.modulations()[0].float(), mean, rtol=2e-2, atol=2e-2)
        assert bank.entries[0].count > 2

    def test_numbers_that_cannot_be_kept(self, engine: Engine, tmp_path: Path) -> None:
        path = saved_mac(engine, tmp_path / "mac")
        model = parts_of(engine)
        weights = folder.read(path, model.backbone)
        with torch.no_grad():
            weights.networks.document_head[2].weight.mul_(1e6)
        folder.write(tmp_path / "large", weights, model.backbone, model.fingerprint, {})
        bank = MacBank(tmp_path / "bank", tmp_path / "large")
        with pytest.raises(SettingsError, match="a modulation must have numbers below 65,504, got a larger one"):
            bank.add(engine, FACTS, progress=False)
        assert len(bank) == 0

    def test_the_nearest_are_merged(self, engine: Engine, mac: Mac) -> None:
        bank = MacBank(mac.bank)
        twin = Document(FACTS[0], "twin")
        bank.add(engine, [twin], progress=False)
        before = bank.modulations().float()
        assert bank.merge(len(FACTS)) == len(FACTS)
        (entry,) = (entry for entry in bank.entries if len(entry.ids) > 1)
        assert set(entry.ids) == {Document(FACTS[0]).id, "twin"}
        merged = bank.modulations()[bank.entries.index(entry)].float()
        torch.testing.assert_close(merged, (before[0] + before[-1]) / 2, rtol=2e-3, atol=2e-3)
        assert len(bank) == len(FACTS) + 1
        with pytest.raises(SettingsError, match=r"document 'twin' was merged with 1 others and cannot be taken out"):
            bank.remove(["twin"])
        assert bank.remove(["twin", Document(FACTS[0]).id]) == 2
        assert bank.add(engine, MORE, most=2, progress=False) == len(MORE)
        assert len(bank.entries) == 2
        with pytest.raises(SettingsError, match="`most` must be at least 1 modulation, got 0"):
            bank.merge(0)

    def test_files_are_joined_when_they_are_many_or_mostly_removed(self, engine: Engine, tmp_path: Path) -> None:
        bank = MacBank(tmp_path / "bank", saved_mac(engine, tmp_path / "mac"))
        for n in range(34):
            bank.add(engine, [f"Number {n} is here."], progress=False)
        assert len(bank) == 34
        files = list(bank.path.glob("modulations-*"))
        assert len(files) <= 32
        kept = bank.modulations()
        bank.remove(bank.ids[:-2])
        assert torch.equal(bank.modulations(), kept[-2:])
        assert len(list(bank.path.glob("modulations-*"))) <= 2

    def test_a_crash_before_the_commit_loses_nothing(
        self, engine: Engine, mac: Mac, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bank = MacBank(mac.bank)
        before, replaced = bank.modulations(), MacBank._replace

        def fails(self: MacBank, name: str, data: bytes) -> None:
            if name == "mac_bank.json":
                raise OSError(28, "No space left on device")
            replaced(self, name, data)

        with monkeypatch.context() as patch:
            patch.setattr(MacBank, "_replace", fails)
            with pytest.raises(MemoryFormatError, match=r"cannot be written .No space left"):
                bank.add(engine, MORE, progress=False)
        assert torch.equal(MacBank(mac.bank).modulations(), before)
        assert bank.add(engine, MORE, progress=False) == len(MORE)

    def test_one_writer_at_a_time(self, engine: Engine, mac: Mac) -> None:
        lock = WriterLock(Path(mac.bank) / "writer.lock")
        try:
            with pytest.raises(StoreLockedError):
                MacBank(mac.bank, lock_timeout=0).remove([Document(FACTS[0]).id])
            assert len(MacBank(mac.bank)) == len(FACTS)
        finally:
            lock.release()

    def test_damage_is_reported(self, engine: Engine, mac: Mac) -> None:
        assert inspected(Path(mac.bank)).damaged == {}
        (file,) = Path(mac.bank).glob("modulations-*")
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(bytes(data))
        with pytest.raises(MemoryFormatError, match=r"is damaged .its checksum is wrong.; restore it, or"):
            engine.answer(ask(memory=mac))
        assert inspected(Path(mac.bank)).damaged
        about = Path(mac.bank) / "mac_bank.json"
        about.write_text(json.dumps({**json.loads(about.read_text()), "entries": []}))
        with pytest.raises(MemoryFormatError, match=r"mac_bank\.json is damaged"):
            MacBank(mac.bank)
        about.unlink()
        with pytest.raises(MemoryFormatError, match=r"has no mac_bank\.json; make a bank with MacBank"):
            engine.answer(ask(memory=mac))

    def test_other_models_and_folders_are_refused(self, make_engine: Any, mac: Mac, tmp_path: Path) -> None:
        other = make_engine("mistral")
        with pytest.raises(SettingsError, match=r"the bank in .* belongs to another model \(fingerprint"):
            other.answer(ask(memory=mac))
        with pytest.raises(SettingsError, match=r"the bank in .* belongs to another model \(fingerprint"):
            MacBank(mac.bank).add(other, FACTS, progress=False)
        with pytest.raises(SettingsError, match="was made with another MAC than"):
            MacBank(mac.bank, saved_mac(other, tmp_path / "others"))
        with pytest.raises(MemoryFormatError, match=r"a mac needs mac\.json"):
            MacBank(tmp_path / "new", tmp_path / "nothing")
        with pytest.raises(MemoryFormatError, match="exists and is not a MAC bank"):
            MacBank(tmp_path / "others", tmp_path / "mac")


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
    with_mac = engine.next_token_logprobs(ask(documents=FACTS, memory=mac))
    plain = engine.next_token_logprobs(ask(documents=FACTS))
    assert not torch.equal(with_mac, plain)
    torch.testing.assert_close(plain, make_engine().next_token_logprobs(ask(documents=FACTS)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(engine.next_token_logprobs(ask(documents=FACTS, memory=mac)), with_mac)


def test_settings() -> None:
    memory = Mac("somewhere", group=4, memory=FastMem(steps=3))
    assert Memory.from_json(memory.to_json()) == memory
    for values, rule in {("", None): "`bank`", ("x", 1): "`group`"}.items():
        with pytest.raises(SettingsError, match=rule):
            Mac(*values)
