"""Kept memories: reused without prefilling documents, saved, loaded (also by PEFT alone), and damaged."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from families import FAMILIES, build
from memograft import Cad, Document, Engine, FastMem, MemoryHandle, Request, Sampling
from memograft.errors import MemoryFormatError, PromptTooLongError, SettingsError
from memograft.model import prefill as module
from memograft.model.adapter import applied, stack
from memograft.storage import publish
from memograft.storage.disk import sealed
from test_engine import FACTS, ask, prompt_ids

LORA = FastMem(steps=3, learning_rate=0.05, rank=4, target_kl=None, max_kl=1e9, fallback=False, relevance=None)
FULL = replace(LORA, adapter="full", learning_rate=0.01)
SAMPLING = Sampling(10)


def questions(memory: Any, documents: Any = ()) -> list[Request]:
    texts = ["Who?", "What is the capital of France?", "Where is the river of Paris, and what is it called?"]
    return [Request(q, documents=documents, memory=memory, sampling=SAMPLING) for q in texts]


def resealed(folder: Path, **changes: Any) -> Path:
    """Update the checksums after changing files or values."""
    about = json.loads((folder / "memograft.json").read_text(encoding="utf-8")) | changes
    about["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in about["files"]}
    (folder / "memograft.json").write_text(json.dumps(sealed(about)), encoding="utf-8")
    return folder


@pytest.mark.parametrize("memory", [LORA, replace(LORA, template="assistant"), FULL], ids=["lora", "assistant", "full"])
@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "phi3"])
def test_a_handle_answers_as_a_memory_made_for_the_request(make_engine: Any, family: str, memory: FastMem) -> None:
    engine = make_engine(family)
    handle = engine.memorize(FACTS, memory)
    assert handle.adapter is not None
    fresh = engine.answer_batch(questions(memory, FACTS))
    plain = engine.answer_batch(questions(None, FACTS))
    kept = engine.answer_batch(questions(handle))
    alone = [engine.answer(r) for r in questions(handle)]
    assert [a.token_ids for a in kept] == [a.token_ids for a in alone] == [a.token_ids for a in fresh]
    assert [a.token_ids for a in kept] != [a.token_ids for a in plain], "a memory that changes nothing proves nothing"
    for answer, other in zip(kept, fresh, strict=True):
        assert answer.usage.cached_tokens > 20
        assert answer.usage == replace(other.usage, cached_tokens=answer.usage.cached_tokens)
        assert answer.memory is not None
        assert (answer.memory.id, answer.memory.steps) == (handle.id, 0)
        assert answer.documents == handle.documents


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "mistral", "falcon"])
@pytest.mark.parametrize("window", [8, 64])
def test_prefixes_under_sliding_windows(tokenizer: Any, family: str, window: int, monkeypatch: Any) -> None:
    """With suffixes of different lengths, and prefixes longer and shorter than the window."""
    if family != "falcon":
        monkeypatch.setitem(FAMILIES, family, FAMILIES[family] | {"sliding_window": window})
    with Engine(build(family, seed=1), tokenizer) as engine:
        handle = engine.memorize(FACTS, LORA)
        fresh = [engine.answer(r).token_ids for r in questions(LORA, FACTS)]
        assert [engine.answer(r).token_ids for r in questions(handle)] == fresh
        mixed = questions(handle) + questions(LORA, FACTS) + questions(handle)
        assert [a.token_ids for a in engine.answer_batch(mixed)] == fresh * 3
        prefix = handle.segment
        assert prefix is not None
        length = prefix.kv_cache.get_seq_length()
        assert engine.answer(questions(handle)[0]).token_ids == fresh[0]
        assert prefix.kv_cache.get_seq_length() == length, "the kept cache was written to"


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_many_memories_are_one_batch(make_engine: Any, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside requests without a memory, with context-aware decoding, and with a fallback."""
    engine = make_engine(family)
    handles = [engine.memorize(FACTS[:n], replace(LORA, seed=n, fallback=n == 2)) for n in (1, 2, 3)]
    requests = [r for handle in handles for r in questions(handle)]
    passes = []
    run = module.run
    monkeypatch.setattr(module, "run", lambda *a: (passes.append(len(a[1])), run(*a))[1])
    engine.answer_batch(requests)
    assert passes == [len(requests)]
    requests += [replace(requests[0], processors=[Cad()]), ask(documents=FACTS), ask()]
    alone = [engine.answer(request) for request in requests]
    runs, real = [], engine._session._memorized
    monkeypatch.setattr(engine._session, "_memorized", lambda jobs, *a: (runs.append(len(jobs)), real(jobs, *a))[1])
    passes.clear()
    together = engine.answer_batch(requests)
    assert runs == [len(requests)]
    assert passes == [10, 2, 1], "what has a kept memory, what has none, and the prompt without documents"
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    assert [a.usage for a in together] == [a.usage for a in alone]


def test_a_handle_with_other_documents_or_another_beginning(engine: Engine) -> None:
    handle = engine.memorize(FACTS[:1], LORA)
    other = engine.answer(Request("Who?", documents=FACTS[1:], memory=handle, sampling=SAMPLING))
    assert [d.text for d in other.documents] == FACTS[1:]
    assert other.usage.cached_tokens == 0
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    answer = engine.answer(Request(messages=messages, memory=handle, sampling=SAMPLING))
    assert answer.usage.cached_tokens == 0
    assert [d.text for d in answer.documents] == FACTS[:1]


def test_ids_say_what_a_memory_is_made_of(engine: Engine) -> None:
    ids = {
        engine.memorize(documents, memory).id
        for documents, memory in [(FACTS, LORA), (FACTS[:2], LORA), (FACTS, replace(LORA, seed=1)), (FACTS, LORA)]
    }
    assert len(ids) == 3


def test_documents_too_long_and_none_at_all(engine: Engine) -> None:
    with pytest.raises(PromptTooLongError, match=r"tokens, and .* fit"):
        engine.memorize(["long " * 300])
    empty = engine.memorize([], LORA)
    assert empty.adapter is None
    assert "no documents" in (empty.report.reason or "")
    assert engine.answer(ask(memory=empty)).token_ids == engine.answer(ask()).token_ids


# PEFT 0.21 uses an old name of transformers: a warning that neither we nor a user can avoid.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("memory", [LORA, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "opt", "gemma2"])
def test_plain_peft_loads_a_saved_memory(
    tokenizer: Any, tmp_path: Path, family: str, memory: FastMem, caplog: Any, capsys: Any
) -> None:
    model = build(family)
    with Engine(model, tokenizer) as engine:
        handle = engine.memorize(FACTS, memory)
        folder = handle.save(tmp_path / "memory")
        ids = torch.tensor([prompt_ids(engine, ask(documents=FACTS))])
        with torch.no_grad(), applied(engine._backbone, stack([handle.adapter], engine._backbone)):
            ours = model(ids).logits
        with torch.no_grad():
            base = model(ids).logits
    assert {p.name for p in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "memograft.json"}
    copy = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**FAMILIES[family])).eval()
    copy.load_state_dict(model.state_dict())
    with caplog.at_level(logging.WARNING):
        peft = PeftModel.from_pretrained(copy, str(folder)).eval()
        with torch.no_grad():
            theirs = peft(input_ids=ids).logits
    assert not caplog.records
    assert "Warning" not in capsys.readouterr().err
    assert float((theirs - ours).abs().max()) <= 1e-5 * float(ours.abs().max().clamp_min(1))
    assert float((theirs - base).abs().max()) > 1e-2


class TestOnDisk:
    DOCUMENTS = (
        Document("Zürich liegt an der Limmat. 🙂 漢字", id="ü/1", metadata={"größe": 3, "tags": ["a"]}),
        Document(FACTS[0]),
    )

    @pytest.fixture
    def saved(self, engine: Engine, tmp_path: Path) -> tuple[MemoryHandle, Path]:
        handle = engine.memorize(self.DOCUMENTS, LORA)
        return handle, handle.save(tmp_path / "memory")

    def test_round_trip(self, engine: Engine, saved: Any) -> None:
        handle, folder = saved
        again = engine.load_memory(folder)
        assert (again.id, again.documents, again.settings) == (handle.id, handle.documents, handle.settings)
        assert again.report == handle.report
        answers = [[engine.answer(r) for r in questions(h)] for h in (handle, again)]
        assert [a.token_ids for a in answers[0]] == [a.token_ids for a in answers[1]]
        assert all(a.usage.cached_tokens > 0 for a in answers[1])
        assert again.save(folder.with_name("copy")).is_dir()

    def test_another_engine_of_the_same_weights(self, saved: Any, tokenizer: Any) -> None:
        for dtype in (torch.float32, torch.bfloat16):
            with Engine(build("llama", dtype=dtype), tokenizer) as other:
                assert other.answer(questions(other.load_memory(saved[1]))[0]).usage.cached_tokens > 0

    def test_another_model(self, saved: Any, make_engine: Any, tokenizer: Any) -> None:
        for model in (build("qwen2"), build("llama", seed=9)):
            with Engine(model, tokenizer) as other:
                with pytest.raises(MemoryFormatError, match=r"was made for another model .*; load it with the model"):
                    other.load_memory(saved[1])
                with pytest.raises(SettingsError, match=r"was made for another model .*; memorize the documents"):
                    other.answer(ask(memory=saved[0]))

    def test_it_is_overwritten_whole(self, engine: Engine, saved: Any) -> None:
        other = engine.memorize(FACTS, LORA)
        assert other.save(saved[1]) == saved[1]
        assert engine.load_memory(saved[1]).id == other.id
        assert [p.name for p in saved[1].parent.iterdir()] == ["memory"], "something was left behind"

    def test_what_else_stands_in_the_folder_stays_and_a_link_stays_a_link(self, engine: Engine, saved: Any) -> None:
        (saved[1] / "README.md").write_text("my notes")
        (saved[1] / "more").mkdir()
        (saved[1] / "more" / "notes").write_text("others")
        link = saved[1].with_name("link")
        link.symlink_to(saved[1])
        other = engine.memorize(FACTS, LORA)
        other.save(link)
        assert link.is_symlink()
        assert engine.load_memory(saved[1]).id == engine.load_memory(link).id == other.id
        assert (saved[1] / "README.md").read_text() == "my notes"
        assert (saved[1] / "more" / "notes").read_text() == "others"

    @pytest.mark.parametrize("failing", [1, 2])
    def test_a_failing_move_leaves_the_old_one(
        self, engine: Engine, saved: Any, failing: int, monkeypatch: Any
    ) -> None:
        real, calls = os.replace, []

        def replace_(a: Any, b: Any) -> None:
            calls.append(1)
            if len(calls) == failing:
                raise OSError(28, "No space left on device")
            real(a, b)

        other = engine.memorize(FACTS, LORA)
        with monkeypatch.context() as patch:
            patch.setattr(publish, "_exchanged", lambda *_: False)  # as on other systems
            patch.setattr(os, "replace", replace_)
            with pytest.raises(MemoryFormatError, match=r"cannot be written \(No space left on device\); pass a path"):
                other.save(saved[1])
        assert engine.load_memory(saved[1]).id == saved[0].id
        assert [p.name for p in saved[1].parent.iterdir()] == ["memory"]

    @pytest.mark.parametrize("room", [10, 2000])
    def test_a_full_disk_leaves_the_old_one(self, engine: Engine, saved: Any, room: int) -> None:
        other = engine.memorize(FACTS, LORA)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))  # limits the size of files
        try:
            with pytest.raises(Exception, match="File too large"):
                other.save(saved[1])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert engine.load_memory(saved[1]).id == saved[0].id
        assert [p.name for p in saved[1].parent.iterdir()] == ["memory"]

    @pytest.mark.parametrize("name", ["memograft.json", "adapter_model.safetensors", "adapter_config.json"])
    def test_a_missing_file_is_named(self, engine: Engine, saved: Any, name: str) -> None:
        (saved[1] / name).unlink()
        with pytest.raises(MemoryFormatError, match=f"a memory needs {name}, and .* has none"):
            engine.load_memory(saved[1])

    @pytest.mark.parametrize("name", ["memograft.json", "adapter_model.safetensors"])
    @pytest.mark.parametrize("keep", [0, 3, 0.5, 0.99])
    def test_a_truncated_file_is_named(self, engine: Engine, saved: Any, name: str, keep: float) -> None:
        file = saved[1] / name
        content = file.read_bytes()
        file.write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])
        with pytest.raises(MemoryFormatError, match=f"{name} is damaged"):
            engine.load_memory(saved[1])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"format": 99}, "must be of format 2, got 99"),
            ({"settings": {"kind": "fastmem", "steps": 0}}, "is damaged .*`steps` must be a whole number"),
            ({"settings": {"kind": "fastmem", "unknown": 1}}, "is damaged .*`fastmem` has no such setting"),
            (
                {"settings": {"kind": "none"}},
                "is damaged .*`kind` must be one of .*fastmem.*, got 'none'; import the module",
            ),
            ({"documents": [{"name": "x"}]}, "is damaged"),
            ({"report": 3}, "is damaged"),
        ],
    )
    def test_wrong_contents(self, engine: Engine, saved: Any, change: dict[str, Any], message: str) -> None:
        with pytest.raises(MemoryFormatError, match=message):
            engine.load_memory(resealed(saved[1], **change))

    def test_a_change_by_hand_is_damage(self, engine: Engine, saved: Any) -> None:
        file = saved[1] / "memograft.json"
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace(json.dumps(FACTS[0])[1:-1], "Paris is in Japan."), encoding="utf-8")
        with pytest.raises(MemoryFormatError, match="its checksum is wrong"):
            engine.load_memory(saved[1])

    @pytest.mark.parametrize("content", ["[]", "3", '"x"', "{}", '{"format": 1}'])
    def test_json_of_something_else(self, engine: Engine, saved: Any, content: str) -> None:
        (saved[1] / "memograft.json").write_text(content)
        with pytest.raises(MemoryFormatError, match=r"memograft\.json"):
            engine.load_memory(saved[1])

    @pytest.mark.parametrize(
        "tensors", [{}, {"x": (2, 2)}, {"base_model.model.a.lora_A.weight": (2, 2)}, {"a.b.lora_C.weight": (1, 1)}]
    )
    def test_weights_of_something_else(self, engine: Engine, saved: Any, tensors: dict[str, Any]) -> None:
        from safetensors.torch import save_file

        save_file({k: torch.zeros(v) for k, v in tensors.items()}, saved[1] / "adapter_model.safetensors")
        with pytest.raises(MemoryFormatError, match=r"is damaged|do not fit this model"):
            engine.load_memory(saved[1])

    def test_weights_of_the_wrong_shape(self, engine: Engine, saved: Any) -> None:
        from safetensors.torch import load_file, save_file

        file = saved[1] / "adapter_model.safetensors"
        save_file({k: v[:2, :2].contiguous() for k, v in load_file(file).items()}, file)
        resealed(saved[1])
        with pytest.raises(MemoryFormatError, match=r"do not fit this model: .* has factors of shapes"):
            engine.load_memory(saved[1])

    def test_a_foreign_folder_is_not_overwritten(self, saved: Any, tmp_path: Path) -> None:
        foreign = tmp_path / "mine"
        foreign.mkdir()
        (foreign / "notes.txt").write_text("do not lose me")
        for path in (foreign, foreign / "notes.txt"):
            with pytest.raises(MemoryFormatError, match="exists and is not a memory, so it is not overwritten"):
                saved[0].save(path)
        assert (foreign / "notes.txt").read_text() == "do not lose me"

    def test_an_empty_folder_and_a_deep_path_are_taken(self, saved: Any, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        for path in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
            assert (saved[0].save(path) / "memograft.json").is_file()

    def test_nothing_to_save(self, engine: Engine, tmp_path: Path) -> None:
        with pytest.raises(MemoryFormatError, match="no weights to save: nothing to memorize"):
            engine.memorize([], LORA).save(tmp_path / "none")

    def test_metadata_that_is_not_json(self, engine: Engine, tmp_path: Path) -> None:
        handle = engine.memorize([Document(FACTS[0], metadata={"when": object()})], LORA)
        with pytest.raises(MemoryFormatError, match="metadata must be JSON"):
            handle.save(tmp_path / "none")
        assert not list(tmp_path.iterdir())

    def test_a_folder_moves_with_its_memory(self, engine: Engine, saved: Any, tmp_path: Path) -> None:
        shutil.copytree(saved[1], tmp_path / "copy")
        assert engine.load_memory(str(tmp_path / "copy")).id == saved[0].id
