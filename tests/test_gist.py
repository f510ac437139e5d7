"""`Gist`: documents as the keys and values of gist tokens, in an engine. The gists are random; the passes are real."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

import memograft
from families import build
from gists import DOCUMENTS, closest, parts_of, random_gist, saved_gist
from memograft import Bank, Compacted, Datastore, Engine, FastMem, Gist, Kept, Memory, Request, Rtd
from memograft.decoding.tap import Tap
from memograft.documents import Document
from memograft.errors import (
    MemoryFormatError,
    PromptTooLongError,
    RequestCancelledError,
    SettingsError,
    UnsupportedModelError,
)
from memograft.evaluation.items import world
from memograft.evaluation.scores import holds
from memograft.memory.base import Task, Wanted
from memograft.memory.gist import folder
from memograft.memory.gist import memory as gist_memory
from memograft.memory.gist.compress import compressed, opening, parts
from memograft.model.backbone import cache_name, cache_of
from memograft.model.kv import empty
from memograft.model.prefill import Pace
from memograft.serving.scoring import logprobs_of
from test_engine import FACTS, ask
from test_memory_protocol import FixedPrefix
from tokenizers_ import make

LORA = FastMem(steps=2, learning_rate=0.05, rank=4, target_kl=None, max_kl=1e9, fallback=False, relevance=None)


@pytest.fixture
def gist(engine: Engine, tmp_path: Path) -> Gist:
    return Gist(str(saved_gist(engine, tmp_path / "gist", window=64)))


def first_logprobs(engine: Engine, requests: list[Request]) -> list[torch.Tensor]:
    return [logprobs_of(tap) for tap in engine.tapped(requests, [Tap() for _ in requests])]


def behind_gists(engine: Engine, memory: Gist, request: Request) -> torch.Tensor:
    """Log-probabilities of the next token by passes written out: each document compressed alone, then the prompt."""
    model = parts_of(engine)
    weights, cache = folder.read(Path(memory.folder), model.backbone), empty(model.backbone)
    pieces = [
        compressed(model.backbone, weights, [ids], 0)
        for document in request.documents
        for ids in parts(model.prompts, document, weights.window)
    ]
    prompt = model.prompts.build(request.messages)
    own = opening(model.prompts, prompt)
    places = torch.arange(weights.window - len(own.ids), weights.window)[None]
    known = {cache_name(model.backbone.model.forward): cache}
    model.backbone.model(input_ids=torch.tensor([own.ids]), position_ids=places, **known)
    for n in range(len(pieces[0].layers)):
        cache.update(*(torch.cat([piece.layers[n][side] for piece in pieces], 2) for side in (0, 1)), n)
    ids = torch.tensor([prompt.ids[own.spared :]])
    positions = torch.arange(weights.end, weights.end + ids.shape[1])[None]
    out = model.backbone.model(input_ids=ids, position_ids=positions, **known)
    return out.logits[0, -1].log_softmax(-1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "qwen3", "phi"])
@torch.no_grad()
def test_an_answer_follows_the_gists(make_engine: Any, tmp_path: Path, family: str) -> None:
    engine = make_engine(family)
    memory = Gist(str(saved_gist(engine, tmp_path / "gist", window=64)))
    request = ask(documents=FACTS, memory=memory)
    answer = engine.answer(request)
    assert answer.documents == ()
    assert answer.memory is not None
    assert (answer.memory.reason, answer.memory.steps) == (None, 0)
    assert answer.memory.settings == memory.to_json()
    assert answer.memory.documents == tuple(document.id for document in request.documents)
    own = engine.next_token_logprobs(request)
    torch.testing.assert_close(own, behind_gists(engine, memory, request), rtol=1e-5, atol=1e-5)
    other = engine.next_token_logprobs(replace(request, documents=["Something else stands here."]))
    assert float((own - other).abs().max()) > 0.01


def test_a_mixed_batch_is_as_each_alone(engine: Engine, gist: Gist) -> None:
    examples = Datastore.build(engine, [("Who wrote it?", "A sailor."), ("Where?", "In Bergen.")], progress=False)
    handle = engine.memorize(FACTS[:2], gist)
    requests = [
        ask(documents=FACTS),
        ask(documents=FACTS, memory=LORA),
        ask(documents=FACTS, memory=gist),
        ask("Which numbers, and where?", documents=FACTS[2:], memory=gist),
        ask(documents=FACTS[1:], memory=replace(gist, refine=2)),
        ask(memory=handle),
        ask("Where?", memory=FixedPrefix("once")),
        ask(documents=FACTS[:2], memory=replace(gist, show=1)),
        ask(documents=FACTS, memory=Kept()),
        ask(documents=FACTS, memory=Compacted(ratio=4)),
        ask(documents=FACTS, memory=Compacted(LORA, 4)),
        ask(documents=FACTS, memory=gist, processors=[Rtd(examples, weight=0.8, gate=None)]),
    ]
    together = first_logprobs(engine, requests)
    for request, found in zip(requests, together, strict=True):
        torch.testing.assert_close(found, engine.next_token_logprobs(request), rtol=1e-5, atol=1e-5)
    alone = [engine.answer(request).token_ids for request in requests]
    assert [answer.token_ids for answer in engine.answer_batch(requests)] == alone
    assert alone[-1] != alone[2]
    examples.close()


def test_plain_answers_are_bit_for_bit_those_of_the_model(engine: Engine, gist: Gist) -> None:
    plain = ask(documents=FACTS)
    weights = {name: weight.clone() for name, weight in engine.model.state_dict().items()}
    before = engine.next_token_logprobs(plain)
    engine.answer_batch([ask(documents=FACTS, memory=gist), plain])
    assert torch.equal(engine.next_token_logprobs(plain), before)
    assert all(torch.equal(weights[name], weight) for name, weight in engine.model.state_dict().items())
    assert not any(module._forward_hooks for module in engine.model.modules())


def test_the_order_of_documents_does_not_matter(engine: Engine, gist: Gist) -> None:
    orders = [ask(documents=list(order), memory=gist) for order in itertools.permutations(FACTS)]
    first, *others = (engine.next_token_logprobs(request) for request in orders)
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-5, atol=1e-5)


def test_a_long_document_has_several_gists(engine: Engine, gist: Gist) -> None:
    prompts = parts_of(engine).prompts
    long = Document(" ".join(FACTS * 3))
    cut, whole = parts(prompts, long, 64), parts(prompts, long, 1000)
    assert len(whole) == 1
    assert len(cut) > 1
    assert max(map(len, cut)) == 64
    (start, end) = prompts.build([{"role": "user", "content": "?"}], [long]).spans[0]
    assert all(ids[:start] == whole[0][:start] for ids in cut)
    assert [id for ids in cut for id in ids[start:]] == list(whole[0][start:end])
    answer = engine.answer(ask(documents=[long], memory=gist))
    assert answer.usage.completion_tokens > 0
    with pytest.raises(SettingsError, match=r"`window` must have at least 8 tokens behind the .* of the chat template"):
        parts(prompts, long, 12)


def test_documents_are_compressed_once(engine: Engine, gist: Gist, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []

    def counted(backbone: Any, weights: Any, documents: Any, pad_id: int) -> Any:
        passes.append(len(documents))
        return compressed(backbone, weights, documents, pad_id)

    monkeypatch.setattr(gist_memory, "compressed", counted)
    new = [f"{fact} That is new." for fact in FACTS]
    engine.answer_batch([ask(documents=new[:2], memory=gist), ask(documents=new[1:], memory=gist)])
    handle = engine.memorize(new, gist)
    engine.answer_batch([ask(memory=handle), ask(documents=new[::-1], memory=gist)])
    assert sum(passes) == len(new)
    engine.answer(ask(documents=["Another new document."], memory=gist))
    assert passes[-1] == 1


def test_giving_up_ends_the_compression(engine: Engine, gist: Gist, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a pace, a pass has one document, and what is made until then is kept."""
    texts, calls = [f"{fact} Nobody waits for this." for fact in FACTS], list[int]()
    monkeypatch.setattr(gist_memory, "compressed", lambda *args: calls.append(len(args[2])) or compressed(*args))
    model, documents = parts_of(engine), tuple(map(Document, texts))
    prompt = model.prompts.build([{"role": "user", "content": "?"}])
    wanted = Wanted(gist, prompt, 0, documents=documents, task=Task(lambda: len(calls) == 2, pace=Pace(1e-9)))
    with pytest.raises(RequestCancelledError, match="given up while its documents were compressed"):
        Gist.before(model, [wanted])
    assert calls == [1, 1]
    assert Gist.before(model, [replace(wanted, task=Task())]) != [None]
    assert calls == [1, 1, len(FACTS) - 2]


def test_a_bank_keeps_gists_for_later_processes(
    make_engine: Any, gist: Gist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ask(documents=FACTS, memory=gist)
    expected = make_engine().next_token_logprobs(request)
    bank = tmp_path / "bank"
    make_engine(bank=Bank(bank, prefix_files="exact")).answer(request)
    assert len(Bank(bank).entries()) == len(FACTS)
    assert all(entry.size < 10_000 for entry in Bank(bank).entries())
    monkeypatch.setattr(gist_memory, "compressed", None)
    again = make_engine(bank=Bank(bank, prefix_files="exact"))
    assert torch.equal(again.next_token_logprobs(request), expected)


def test_a_handle_is_saved_and_loaded(engine: Engine, gist: Gist, tmp_path: Path) -> None:
    handle = engine.memorize(FACTS, gist)
    assert handle.settings == gist
    assert handle.segment is not None
    prompts = parts_of(engine).prompts
    front = opening(prompts, prompts.build([{"role": "user", "content": "?"}])).ids
    assert (handle.segment.ids, handle.segment.length, handle.segment.end) == (front, 3 * 3 + len(front), 64 + 3)
    assert handle.id != engine.memorize(FACTS[:2], gist).id
    handle.save(tmp_path / "handle")
    loaded = engine.load_memory(tmp_path / "handle")
    assert (loaded.id, loaded.documents, loaded.settings) == (handle.id, handle.documents, handle.settings)
    expected = engine.next_token_logprobs(ask(documents=FACTS, memory=gist))
    for one in (handle, loaded):
        torch.testing.assert_close(engine.next_token_logprobs(ask(memory=one)), expected, rtol=1e-5, atol=1e-5)
        answer = engine.answer(ask(memory=one))
        assert answer.memory is not None
        assert (answer.memory.reused, answer.memory.id) == (True, handle.id)


def test_the_first_documents_may_stay_in_the_prompt(engine: Engine, gist: Gist) -> None:
    both = engine.answer(ask(documents=FACTS, memory=replace(gist, show=2)))
    assert [document.text for document in both.documents] == FACTS[:2]
    shown = engine.answer(ask(documents=FACTS[:2]))
    assert both.usage.prompt_tokens == shown.usage.prompt_tokens


def test_another_system_message_has_only_the_first_token_in_front(make_engine: Any, gist: Gist) -> None:
    """A handle that was made for the template's own beginning is made again."""
    engine = make_engine()
    handle = engine.memorize(FACTS, gist)
    system = [{"role": "system", "content": "Answer in Spanish."}, {"role": "user", "content": "Who wrote it?"}]
    request = Request(messages=system, documents=FACTS, memory=gist)
    model = parts_of(engine)
    own = opening(model.prompts, model.prompts.build(system))
    assert len(own.ids) == 1
    fresh = engine.next_token_logprobs(request)
    torch.testing.assert_close(fresh, behind_gists(engine, gist, request), rtol=1e-5, atol=1e-5)
    again = engine.next_token_logprobs(Request(messages=system, memory=handle))
    torch.testing.assert_close(again, fresh, rtol=1e-5, atol=1e-5)


def test_documents_without_text_have_no_gist(engine: Engine, gist: Gist) -> None:
    empty = engine.next_token_logprobs(ask(documents=[""], memory=gist))
    assert torch.equal(empty, engine.next_token_logprobs(ask()))


def test_without_documents_the_answer_is_the_plain_one(engine: Engine, gist: Gist) -> None:
    answer = engine.answer(ask(memory=gist))
    assert answer.token_ids == engine.answer(ask()).token_ids
    assert answer.memory is not None
    assert answer.memory.reason == "nothing to memorize: there are no documents"


def test_position_and_columns_count_towards_the_window(make_engine: Any, gist: Gist) -> None:
    """W + k positions come before the prompt, or as many columns, if there are more."""
    prompt = make_engine().answer(ask()).usage.prompt_tokens
    request = ask(documents=FACTS[:1], memory=gist)
    assert make_engine(max_length=64 + 3 + prompt + 2).answer(request).usage.completion_tokens == 2
    with pytest.raises(PromptTooLongError):
        make_engine(max_length=64 + 3 + prompt).answer(request)
    prompts = parts_of(make_engine()).prompts
    many = tuple(Document(text) for text in FACTS * 10)
    assert gist.columns(prompts, many) == 3 * sum(len(parts(prompts, document, 64)) for document in many)


def test_a_gist_of_another_model_or_k_is_refused(make_engine: Any, gist: Gist) -> None:
    for use in ("answer", "memorize"):
        engine, other = make_engine(), make_engine("mistral")

        def ask_for(engine: Engine, memory: Gist, use: str = use) -> object:
            if use == "memorize":
                return engine.memorize(FACTS, memory)
            return engine.answer(ask(documents=FACTS, memory=memory))

        with pytest.raises(SettingsError, match=r"the gist in .* was trained for another model \(fingerprint"):
            ask_for(other, gist)
        with pytest.raises(SettingsError, match=r"`tokens` must be 3, as many as the gist in .*, got 4; leave it out"):
            ask_for(engine, replace(gist, tokens=4))
        assert ask_for(engine, replace(gist, tokens=3))
    for values, rule in {("", None, 0): "`folder`", ("x", 0, 0): "`tokens`", ("x", None, -1): "`show`"}.items():
        with pytest.raises(SettingsError, match=rule):
            Gist(*values)


def test_a_model_without_positions_is_refused(tmp_path: Path, engine: Engine, gist: Gist) -> None:
    model = build("falcon", changes={"alibi": True})
    with Engine(model, make("bpe")) as other:
        about = json.loads((Path(gist.folder) / "gist.json").read_text())
        weights = folder.read(Path(gist.folder), parts_of(engine).backbone)
        folder.write(tmp_path / "own", weights, parts_of(engine).backbone, other.fingerprint, about["training"])
        with pytest.raises(UnsupportedModelError, match="learned tokens are embeddings at positions of their own"):
            other.answer(ask(documents=FACTS, memory=Gist(str(tmp_path / "own"))))


def test_the_bundled_gist_answers_about_pages_that_it_has_not_seen() -> None:
    """It is right about most, where the model without the pages knows none."""
    asked = [item for item in world("tune") if item.set == "unseen"][:24]
    with Engine.from_pretrained("tiny", max_batch=24) as engine:
        requests = [Request(i.question, documents=i.documents, memory=Gist("tiny")) for i in asked]
        answers = engine.answer_batch(requests)
    right = sum(holds(answer.text, item.answers[0]) for answer, item in zip(answers, asked, strict=True))
    assert right >= len(asked) / 2
    (place,) = (Path(memograft.__file__).parent / "models").glob("tiny-gist")
    assert sum(file.stat().st_size for file in place.iterdir()) < 2e6
    assert folder.inspected(Path("tiny")).damaged == {}


def test_a_folder_of_the_bundled_name_comes_first(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bundled = folder.about(Path("tiny"))
    own = folder.about(saved_gist(engine, Path("tiny")))
    assert folder.about(Path("tiny")).id == own.id != bundled.id


class TestFolder:
    """What training writes is read back, by PEFT too, and damage is reported."""

    def test_round_trip(self, engine: Engine, tmp_path: Path) -> None:
        model = parts_of(engine)
        weights = random_gist(model.backbone, on_documents=True)
        known = (("Who?", "Ada."), ("Where?", "In Peru."))
        folder.write(tmp_path / "gist", weights, model.backbone, model.fingerprint, {"seed": 7}, known)
        about = folder.about(tmp_path / "gist")
        assert replace(about, id="") == folder.GistAbout("", engine.fingerprint, 3, 32, True, {"seed": 7}, known)
        read = folder.read(tmp_path / "gist", model.backbone)
        assert torch.equal(read.embeddings, weights.embeddings)
        assert (read.window, read.on_documents) == (32, True)
        for part in ("lora_a", "lora_b"):
            own, other = getattr(weights.adapter, part), getattr(read.adapter, part)
            assert own.keys() == other.keys()
            assert all(torch.equal(own[name], other[name]) for name in own)

    @pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning")
    @pytest.mark.parametrize("family", ["llama", "gpt2"])
    @torch.no_grad()
    def test_peft_reads_it(self, make_engine: Any, tmp_path: Path, family: str) -> None:
        """On documents too, because PEFT's adapter acts on all tokens of a pass."""
        engine = make_engine(family)
        path = saved_gist(engine, tmp_path / "gist", on_documents=True)
        backbone = parts_of(engine).backbone
        weights = folder.read(path, backbone)
        made = compressed(backbone, weights, DOCUMENTS[:1], 0)
        peft = PeftModel.from_pretrained(build(family), str(path))
        embed = peft.get_input_embeddings()
        row = torch.cat([embed(torch.tensor(DOCUMENTS[0])), weights.embeddings])[None]
        positions = torch.arange(32 - len(DOCUMENTS[0]), 32 + 3)[None]
        out = peft(inputs_embeds=row, position_ids=positions, use_cache=True)
        layers = [(layer.keys[:, :, -3:], layer.values[:, :, -3:]) for layer in cache_of(out).layers]
        assert closest(made.layers, layers) < 1e-5

    @pytest.mark.parametrize("name", ["gist.json", "gist.safetensors", "adapter_model.safetensors"])
    def test_damage_is_reported(self, engine: Engine, gist: Gist, name: str) -> None:
        file = Path(gist.folder) / name
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(bytes(data))
        backbone = parts_of(engine).backbone
        with pytest.raises(MemoryFormatError, match=f"{name} is damaged .*; train it again, or restore the file"):
            folder.read(Path(gist.folder), backbone)
        file.unlink()
        with pytest.raises(MemoryFormatError, match=name.replace(".", r"\.")):
            folder.read(Path(gist.folder), backbone)

    def test_other_folders_are_refused(self, engine: Engine, gist: Gist, tmp_path: Path) -> None:
        with pytest.raises(MemoryFormatError, match=r"a gist needs gist\.json, and .* has none; name a folder that"):
            engine.answer(ask(documents=FACTS, memory=Gist(str(tmp_path / "nothing"))))
        file = Path(gist.folder) / "gist.json"
        file.write_text(json.dumps({"format": 99}))
        with pytest.raises(MemoryFormatError, match="must be of format 3, got 99"):
            engine.answer(ask(documents=FACTS, memory=gist))

    def test_a_new_gist_in_the_same_folder_is_used(self, engine: Engine, gist: Gist) -> None:
        request = ask(documents=FACTS, memory=gist)
        before = engine.next_token_logprobs(request)
        shutil.rmtree(gist.folder)
        saved_gist(engine, Path(gist.folder), window=64, on_documents=True)
        assert not torch.equal(engine.next_token_logprobs(request), before)


def test_settings_go_through_json() -> None:
    memory = Gist("somewhere", tokens=5, show=1, refine=30)
    assert Memory.from_json(memory.to_json()) == memory
    assert Gist(Path("somewhere")) == Gist("somewhere")  # type: ignore[arg-type]
