"""Kept and Compacted: contexts that are carried as keys and values."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from families import FAMILIES, build
from memograft import Bank, Cad, Compacted, Datastore, Engine, FastMem, Kept, Memory, Request, Rtd, Sampling
from memograft.errors import MemoryFormatError, RequestCancelledError, SettingsError, UnsupportedModelError
from memograft.memory.base import Model, Task
from memograft.memory.carried_file import packed, unpacked
from memograft.memory.compact.keys import asked_of, compacted, exact
from memograft.model.backbone import Backbone
from memograft.model.carried import Carried, CarriedLayer
from memograft.model.int8 import Int8
from memograft.model.prefill import Pace, run
from test_engine import FACTS, ask
from test_key_bias import WITHOUT_INTERFACE

LORA = FastMem(steps=3, learning_rate=0.05, rank=4, target_kl=None, max_kl=1e9, fallback=False, relevance=None)
FEW = Compacted(ratio=8)


def model_of(engine: Engine, bank: Bank | None = None) -> Model:
    pad = engine.tokenizer.pad_token_id or 0
    return Model(engine._backbone, engine._prompts, pad, engine._model.fingerprint, bank)


def prompt_of(engine: Engine, documents: Any = FACTS) -> Any:
    return engine._prompts.build([{"role": "user", "content": "?"}], Request("?", documents=documents).documents)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_kept_and_a_ratio_of_1_answer_as_the_prompt_does(make_engine: Any, family: str) -> None:
    engine = make_engine(family)
    plain = engine.answer(ask(documents=FACTS, logprobs=0))
    memories = [Kept()] if family in (*WITHOUT_INTERFACE, "mistral", "gemma3_text") else [Kept(), Compacted(ratio=1)]
    for memory in memories:
        handle = engine.memorize(FACTS, memory)
        answer = engine.answer(ask(memory=handle, logprobs=0))
        assert answer.token_ids == plain.token_ids
        torch.testing.assert_close(logprobs(answer), logprobs(plain), atol=1e-4, rtol=1e-4)
        assert answer.usage.cached_tokens == len(handle.carried.ids)  # type: ignore[union-attr]


def logprobs(answer: Any) -> torch.Tensor:
    return torch.tensor([token.logprob for token in answer.logprobs])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3"])
def test_rows_of_every_kind_share_a_batch(make_engine: Any, family: str) -> None:
    """Each answers what it answers alone, and with the same probabilities."""
    engine = make_engine(family)
    memories = [None, LORA, Kept(), FEW, Compacted(LORA, 4), Compacted(ratio=2), engine.memorize(FACTS, FEW)]
    memories += [engine.memorize(FACTS, Kept(LORA)), engine.memorize(FACTS[:1], Compacted(ratio=8)), None]
    requests = [
        ask(n=4 + n, documents=() if hasattr(memory, "save") else FACTS, memory=memory, logprobs=0)
        for n, memory in enumerate(memories)
    ]
    alone = [engine.answer(request) for request in requests]
    for one, together in zip(alone, engine.answer_batch(requests), strict=True):
        assert one.token_ids == together.token_ids
        torch.testing.assert_close(logprobs(together), logprobs(one), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_with_everything_that_adds_rows(make_engine: Any, family: str) -> None:
    """The base model's answer beside it, its logits for contrast, and the prompt without documents (CAD)."""
    engine = make_engine(family)
    loud = replace(LORA, contrast=0.5)
    requests = [
        ask(documents=FACTS, memory=Compacted(replace(LORA, fallback=True), 4)),
        ask(documents=FACTS, memory=Compacted(loud, 4), logprobs=0),
        ask(documents=FACTS, memory=FEW, processors=[Cad(0.5)], logprobs=0),
        ask(documents=FACTS),
    ]
    alone = [engine.answer(request) for request in requests]
    for one, together in zip(alone, engine.answer_batch(requests), strict=True):
        assert one.token_ids == together.token_ids
    (bare,) = engine.answer_batch([replace(requests[2], processors=[])])
    assert bare.logprobs[0].logprob != alone[2].logprobs[0].logprob


def test_fastmem_on_top_is_fastmem(engine: Engine) -> None:
    """It trains on the whole documents, and gives the same adapter."""
    alone, on_top = engine.memorize(FACTS, LORA), engine.memorize(FACTS, Compacted(LORA, 4))
    assert on_top.report.losses == alone.report.losses
    for name, weight in alone.adapter.lora_b.items():  # type: ignore[union-attr]
        torch.testing.assert_close(on_top.adapter.lora_b[name], weight)  # type: ignore[union-attr]
    request = ask(documents=FACTS, memory=Compacted(LORA, 4))
    assert engine.answer(request).token_ids == engine.answer(ask(memory=on_top)).token_ids
    assert engine.answer(request).memory.losses == pytest.approx(alone.report.losses)  # type: ignore[union-attr]


def test_tiny_still_answers_from_a_quarter(tiny: Engine) -> None:
    """On real text a fourth of the keys predicts nearly what all predict; a truncated page does not."""
    page = "The harbour of Lindow was built in 1712 by Ada Brook. It has two lighthouses and a market on Fridays."
    question = "Who built the harbour of Lindow?"
    whole = tiny.next_token_logprobs(Request(question, documents=[page]))

    def lost(request: Request) -> float:
        other = tiny.next_token_logprobs(request)
        return float((whole.exp() * (whole - other)).sum())

    assert lost(Request(question, memory=tiny.memorize([page], Kept()))) < 1e-3
    assert lost(Request(question, memory=tiny.memorize([page], Compacted(ratio=4)))) < 0.3 * lost(Request(question))


def test_with_rtd(engine: Engine, tmp_path: Path) -> None:
    examples = [{"prompt": "Where?", "answer": "In Paris."}]
    with Datastore.build(engine, examples, path=tmp_path / "store") as store:
        for memory in (Kept(), FEW):
            handle = engine.memorize(FACTS, memory)
            kept = engine.answer(ask(memory=handle, processors=[Rtd(store)]))
            anew = engine.answer(ask(documents=FACTS, memory=memory, processors=[Rtd(store)]))
            assert kept.token_ids == anew.token_ids


class TestKeeping:
    @pytest.mark.parametrize("int8", [True, False])
    @pytest.mark.parametrize("ratio", [5, 8, 16])
    def test_it_takes_a_part_of_the_bytes(self, engine: Engine, ratio: float, int8: bool) -> None:
        """Of the documents' keys and values, with the numbers and the bits that tell which keys these are."""
        handle = engine.memorize(FACTS, Compacted(ratio=ratio, int8=int8))
        assert isinstance(handle.carried, Carried)
        before, whole, small = prompt_of(engine).spans[0][0], 0.0, 0.0
        for layer in handle.carried.layers:
            assert isinstance(layer, CarriedLayer)
            assert isinstance(layer.keys, Int8) == isinstance(layer.values, Int8) == int8
            heads, columns = layer.kept.shape
            assert layer.kept[:, :before].all()
            each = (layer.keys.nbytes + layer.values.nbytes + layer.bias.nbytes) / len(layer.keys)
            small += layer.nbytes - heads * before * (each + 1 / 8)
            whole += heads * (columns - before) * 2 * layer.spread(torch.float32).keys.shape[-1] * 4
        assert small == pytest.approx(whole / ratio, rel=0.03)

    @pytest.mark.parametrize("ratio", [1, 1.5, 2.5])
    def test_no_key_is_left_out_if_8_bits_are_enough(self, make_engine: Any, ratio: float, monkeypatch: Any) -> None:
        """Then nothing has to be known of the queries."""
        monkeypatch.setattr("memograft.memory.compact.keys.asked_of", None)
        engine = make_engine()
        handle, exact = (engine.memorize(FACTS, memory) for memory in (Compacted(ratio=ratio), Kept()))
        assert all(layer.kept.all() for layer in handle.carried.layers)
        got, wanted = (engine.next_token_logprobs(ask(memory=each)) for each in (handle, exact))
        lost = float((wanted.exp() * (wanted - got)).sum())
        assert torch.equal(got, wanted) if ratio == 1 else 0 < lost < 1e-3

    @pytest.mark.parametrize(
        "memory", [Kept(), FEW, Kept(LORA), Compacted(LORA, 4)], ids=["kept", "compacted", "kept and FastMem", "both"]
    )
    def test_it_is_saved_and_loaded(self, engine: Engine, tmp_path: Path, memory: Memory) -> None:
        handle = engine.memorize(FACTS, memory)
        loaded = engine.load_memory(handle.save(tmp_path / "memory"))
        assert (loaded.id, loaded.settings, loaded.nbytes) == (handle.id, handle.settings, handle.nbytes)
        assert packed(loaded.carried) == packed(handle.carried)  # type: ignore[arg-type]
        assert engine.answer(ask(memory=loaded)).token_ids == engine.answer(ask(memory=handle)).token_ids

    def test_a_bank_compacts_once(self, make_engine: Any, tmp_path: Path, monkeypatch: Any) -> None:
        calls = []
        monkeypatch.setattr(
            "memograft.memory.compact.memory.compacted",
            lambda *args, **named: calls.append(1) or compacted(*args, **named),
        )
        answers = []
        for _ in range(2):
            with make_engine(bank=Bank(tmp_path / "bank")) as engine:
                answers += [engine.answer(ask(documents=FACTS, memory=memory)) for memory in (FEW, FEW)]
        assert len(calls) == 1
        assert len({answer.token_ids for answer in answers}) == 1
        assert [answer.usage.cached_tokens > 0 for answer in answers] == [False, True, True, True]

    def test_its_keys_are_not_taken_for_the_documents(self, make_engine: Any) -> None:
        """A bank does not put compacted keys where it keeps exact ones."""
        engine = make_engine(bank=Bank())
        plain = make_engine().answer(ask(documents=FACTS))
        engine.answer(ask(documents=FACTS, memory=Compacted(ratio=16)))
        assert engine.answer(ask(documents=FACTS)).token_ids == plain.token_ids

    def test_damage_is_found(self, engine: Engine, tmp_path: Path) -> None:
        folder = engine.memorize(FACTS, FEW).save(tmp_path / "memory")
        data = bytearray((folder / "keys.safetensors").read_bytes())
        data[-1] ^= 255
        (folder / "keys.safetensors").write_bytes(bytes(data))
        with pytest.raises(MemoryFormatError, match=r"keys\.safetensors is damaged \(its checksum is wrong\); save"):
            engine.load_memory(folder)
        (folder / "keys.safetensors").unlink()
        with pytest.raises(MemoryFormatError, match=r"a memory needs keys\.safetensors, and .* has none"):
            engine.load_memory(folder)

    def test_contents_that_do_not_fit_together(self, engine: Engine) -> None:
        from safetensors.torch import load, save

        carried = engine.memorize(FACTS, FEW).carried
        assert isinstance(carried, Carried)
        tensors = load(packed(carried))
        with pytest.raises(ValueError, match=r"0\.kept must mark \d+ keys, got \d+"):
            unpacked(save(tensors | {"0.kept": torch.zeros_like(tensors["0.kept"])}), "cpu", None)
        with pytest.raises(ValueError, match="its numbers must be finite"):
            unpacked(save(tensors | {"0.bias": tensors["0.bias"] * torch.nan}), "cpu", None)
        with pytest.raises(ValueError, match=r"0\.keys\.exponents must have an int8 for each block of 0\.keys"):
            unpacked(save(tensors | {"0.keys.exponents": tensors["0.keys.exponents"][1:].clone()}), "cpu", None)

    def test_the_zip_has_the_keys(self, make_engine: Any, tmp_path: Path) -> None:
        with make_engine(bank=Bank(tmp_path / "a")) as engine:
            engine.answer(ask(documents=FACTS, memory=FEW))
        first, second = Bank(tmp_path / "a"), Bank(tmp_path / "b")
        (entry,) = first.entries()
        first.export(entry.id, tmp_path / "memory.zip")
        second.take(tmp_path / "memory.zip")
        assert (second.entry(entry.id).path / "keys.safetensors").exists()


class TestRefusals:
    @pytest.mark.parametrize("ratio", [0, 0.5, -3, True, "4", float("nan"), None])
    def test_ratio(self, ratio: Any) -> None:
        with pytest.raises(SettingsError, match="`ratio` must be a number of at least 1, such as 4 or 10, got"):
            Compacted(ratio=ratio)

    def test_int8(self) -> None:
        with pytest.raises(SettingsError, match="`int8` must be True or False, got 8"):
            Compacted(int8=8)  # type: ignore[arg-type]

    @pytest.mark.parametrize("questions", ["Who?", ("",), (3,), None])
    def test_questions(self, questions: Any) -> None:
        with pytest.raises(SettingsError, match=r"`questions` must be texts, such as .*, got"):
            Compacted(ratio=4, questions=questions)

    @pytest.mark.parametrize("memory", ["fastmem", Kept(), 3])
    def test_memory(self, memory: Any) -> None:
        with pytest.raises(SettingsError, match=r"`memory` of Compacted must be FastMem\(\.\.\.\) or None, got"):
            Compacted(memory, 4)

    def test_models_with_sliding_windows_only(self, make_engine: Any) -> None:
        engine = make_engine("mistral")
        with pytest.raises(UnsupportedModelError, match=r"only those in a sliding window.*use Kept\(\)"):
            engine.memorize(FACTS, FEW)

    def test_a_handle_of_another_model(self, make_engine: Any) -> None:
        handle = make_engine().memorize(FACTS, FEW)
        with pytest.raises(SettingsError, match="was made for another model"):
            make_engine("qwen3").answer(ask(memory=handle))


def test_the_questions_decide_which_keys_stay(tiny: Engine) -> None:
    """More keys of the sentence that answers them are kept."""
    first, second = "The harbour of Lindow was built in 1712 by Ada Brook.", "Portugal has its capital in Rabat."
    start = prompt_of(tiny, [first]).spans[0][1]
    kept = []
    for question in ("What is the capital of Portugal?", "Who built the harbour of Lindow?"):
        handle = tiny.memorize([f"{first} {second}"], Compacted(ratio=8, questions=(question,)))
        layers = handle.carried.layers  # type: ignore[union-attr]
        kept.append(sum(int(layer.kept[:, start:].sum()) for layer in layers))  # type: ignore[union-attr]
    assert kept[0] > kept[1]


def test_settings_go_through_json() -> None:
    for memory in (
        Compacted(ratio=4, questions=("Who?", "When?")),
        Kept(),
        FEW,
        Kept(FastMem(steps=3)),
        Compacted(FastMem(), 10),
    ):
        assert Memory.from_json(json.loads(json.dumps(memory.to_json()))) == memory
    own = Compacted(FastMem(), 10).resolved({"steps": 7})
    assert own.memory is not None
    assert own.memory.steps == 7


def test_without_documents(engine: Engine) -> None:
    for memory in (Kept(), FEW):
        assert engine.answer(ask(memory=memory)).token_ids == engine.answer(ask()).token_ids
        assert engine.memorize([], memory).carried is None


def test_other_documents_than_the_handles(engine: Engine) -> None:
    """A request with documents of its own reads these."""
    handle = engine.memorize(FACTS[:1], Kept())
    answer = engine.answer(ask(documents=FACTS[1:], memory=handle))
    assert answer.token_ids == engine.answer(ask(documents=FACTS[1:])).token_ids


def test_nothing_of_the_model_changes(engine: Engine) -> None:
    ids = torch.tensor([[5, 9, 30, 7]])
    before = engine.model(ids).logits
    engine.answer(ask(memory=engine.memorize(FACTS, Compacted(LORA, 4))))
    assert torch.equal(engine.model(ids).logits, before)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in engine.model.modules())


def test_the_same_every_time(make_engine: Any) -> None:
    first, second = (make_engine().memorize(FACTS, FEW) for _ in range(2))
    assert first.id == second.id
    assert packed(first.carried) == packed(second.carried)


def test_a_long_text_uses_some_of_its_queries(make_engine: Any, monkeypatch: Any) -> None:
    engine = make_engine()
    whole = engine.memorize(FACTS, FEW)
    monkeypatch.setattr("memograft.memory.compact.keys._QUERIES", 7)
    monkeypatch.setattr("memograft.memory.compact.keys._BLOCK", 4)
    some = engine.memorize(FACTS, FEW)
    assert len(packed(some.carried)) == pytest.approx(len(packed(whole.carried)), rel=0.01)
    assert packed(some.carried) != packed(whole.carried)


def test_a_text_that_fills_half_of_the_window(make_engine: Any, monkeypatch: Any) -> None:
    """The second pass is cut, so that no position exceeds the model's largest."""
    engine = make_engine("gpt2")  # 256 learned positions
    text = " ".join(["once upon a time in Paris"] * 30)
    while len(prompt_of(engine, [text]).ids) > 220:
        text = text.rpartition(" ")[0]
    passes = []
    monkeypatch.setattr(
        "memograft.memory.compact.keys.run", lambda *args: passes.append(args[1].shape[1]) or run(*args)
    )
    handle = engine.memorize([text], FEW)
    assert len(passes) > 4
    assert len(engine.answer(ask(memory=handle, n=4)).token_ids) == 4


def test_others_may_use_the_model_between_layers_and_parts(engine: Engine) -> None:
    model, prompt, calls = model_of(engine), prompt_of(engine), list[int]()
    segment = exact(model, prompt)
    assert segment is not None
    FEW.compact(model, prompt, segment, Task(lambda: bool(calls.append(1))))
    assert len(calls) == 2 * len(segment.kv_cache.layers) + 1


def test_giving_up_ends_the_compaction(engine: Engine) -> None:
    model, prompt = model_of(engine), prompt_of(engine)
    segment = exact(model, prompt)
    assert segment is not None
    with pytest.raises(RequestCancelledError, match="given up while its documents were compacted"):
        FEW.compact(model, prompt, segment, Task(lambda: True))
    with pytest.raises(RequestCancelledError, match="given up while its prompt was read"):
        exact(model, prompt, Task(lambda: True, pace=Pace(1e-9)))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2"])
def test_parts_have_the_queries_of_the_whole(make_engine: Any, family: str) -> None:
    engine = make_engine(family)
    model, prompt = model_of(engine), prompt_of(engine)
    start = prompt.spans[0][0]
    with torch.no_grad():
        segments = [exact(model, prompt, task) for task in (Task(), Task(pace=Pace(1e-9)))]
        assert segments[0] is not None
        assert segments[1] is not None
        torch.testing.assert_close(segments[0].x, segments[1].x, rtol=1e-4, atol=1e-5)
        whole, parts = (
            asked_of(model.backbone, segments[0], start, (5, 6), t) for t in (Task(), Task(pace=Pace(1e-9)))
        )
    for n, asked in whole.items():
        torch.testing.assert_close(asked.queries, parts[n].queries, rtol=1e-4, atol=1e-5)


def test_a_long_question_is_read_in_parts(make_engine: Any, monkeypatch: Any) -> None:
    """A mask for each head is large, so a pass has few tokens; the answer is the same."""
    engine = make_engine()
    handle = engine.memorize(FACTS, FEW)
    request = ask(memory=handle, question="Where is Paris? " * 6)
    wanted = engine.answer(request)
    monkeypatch.setattr("memograft.model.key_bias._MASK", 4 * 100 * 5)
    assert engine.answer(request).token_ids == wanted.token_ids


def test_float16_and_bfloat16(models: Any, tokenizer: Any) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        with Engine(build("llama", dtype=dtype), tokenizer) as engine:
            handle = engine.memorize(FACTS, FEW)
            assert engine.answer(ask(memory=handle)).token_ids
            assert replace(handle.settings) == FEW
            assert Backbone.of(engine.model).model.dtype == dtype
            layers = handle.carried.segment(engine._backbone).kv_cache.layers  # type: ignore[union-attr]
            assert all(layer.keys.dtype == layer.values.dtype == dtype for layer in layers)


def test_streams(engine: Engine) -> None:
    handle = engine.memorize(FACTS, FEW)
    stream = engine.stream(ask(memory=handle, n=9))
    assert "".join(stream) == engine.answer(ask(memory=handle, n=9)).text


def test_its_report(engine: Engine) -> None:
    answer = engine.answer(ask(memory=engine.memorize(FACTS, Compacted(ratio=10))))
    assert answer.memory is not None
    assert (
        answer.memory.reason
        == "the documents' keys and values are carried in 1/10 of their bytes, and nothing was trained"
    )
    assert answer.memory.reused
    assert Sampling().max_new_tokens
