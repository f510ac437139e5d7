"""A bank returns memories for equal content only, also after restarts, kills and damage."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from memograft import Answer, Bank, Engine, FastMem, Request, shared_engine
from memograft.errors import MemoryFormatError, SettingsError
from memograft.memory.fastmem import contexts as fastmem
from test_engine import FACTS, ask
from test_memory_handle import resealed

LORA = FastMem(steps=2, learning_rate=0.05, rank=4, target_kl=None, max_kl=1e9, fallback=False, relevance=None)


def reused(answer: Answer) -> bool:
    assert answer.memory is not None
    return answer.memory.reused


def test_a_context_is_memorized_once(make_engine: Any, trained: list[int]) -> None:
    engine, plain = make_engine(bank=Bank()), make_engine()
    request = ask(documents=FACTS, memory=LORA)
    first, again = engine.answer(request), engine.answer(request)
    other = engine.answer(replace(request, question=None, messages=[{"role": "user", "content": "Where was it?"}]))
    assert trained == [1]
    assert (reused(first), reused(again), reused(other)) == (False, True, True)
    assert first.token_ids == again.token_ids == plain.answer(request).token_ids
    assert first.memory is not None
    assert again.memory is not None
    assert (again.memory.steps, again.memory.loss_after) == (0, first.memory.loss_after)
    assert again.memory.id == first.memory.id != ""
    assert again.memory.documents == first.memory.documents
    statistics = engine._model.bank.statistics
    assert (statistics.hits, statistics.misses, statistics.held) == (2, 1, 1)


def test_shared_engines_and_banks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is compared by its absolute path, a bank by identity; None means no bank."""
    monkeypatch.chdir(tmp_path)
    folder, bank = shared_engine("tiny", bank="bank"), Bank(tmp_path / "bank")
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    assert shared_engine("tiny", bank=tmp_path / "bank") is shared_engine("tiny", bank="../bank") is folder
    assert folder._model.bank is not None
    assert folder._model.bank.folder == tmp_path / "bank"
    own, none = shared_engine("tiny", bank=bank), shared_engine("tiny")
    assert shared_engine("tiny", bank=bank) is own is not folder
    assert own._model.bank is bank
    assert shared_engine("tiny", bank=Bank(tmp_path / "bank")) is not own
    assert shared_engine("tiny", bank=None) is none is not own


@pytest.mark.parametrize("bank", ["", 3, True])
def test_what_is_no_bank(bank: Any, make_engine: Any) -> None:
    said = rf"`bank` must be a folder, a memograft.Bank, or None, got {bank!r}; leave it out for none"
    for make in (make_engine, partial(shared_engine, "tiny")):
        with pytest.raises(SettingsError, match=said):
            make(bank=bank)


def test_equal_contexts_of_a_batch_are_memorized_once(engine: Engine, trained: list[int]) -> None:
    """With a bank and without."""
    requests = [ask(q, documents=d, memory=LORA) for q in ("Who?", "Where?") for d in (FACTS, FACTS[:1])]
    answers = engine.answer_batch(requests)
    assert trained == [2]
    for request, answer in zip(requests, answers, strict=True):
        assert answer.token_ids == engine.answer(request).token_ids


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"memory": replace(LORA, gate="support")}, True),
        ({"memory": replace(LORA, contrast=0.5)}, True),
        ({"memory": replace(LORA, fallback=True, conflicts=None)}, True),
        ({"sampling": None}, True),
        ({"memory": replace(LORA, steps=3)}, False),
        ({"memory": replace(LORA, template="assistant")}, False),
        ({"documents": FACTS[::-1]}, False),
        ({"documents": FACTS[:2]}, False),
        ({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]}, False),
    ],
)
def test_what_decides_the_weights_decides_the_entry(make_engine: Any, changes: dict[str, Any], same: bool) -> None:
    engine = make_engine(bank=Bank())
    options: dict[str, Any] = {"documents": FACTS, "memory": LORA}
    engine.answer(ask("Who?", **options))
    changed = {k: v for k, v in (options | changes).items() if v is not None}
    request = Request(**changed) if "messages" in changed else ask("Who?", 5, **changed)
    assert reused(engine.answer(request)) == same


def test_another_model_has_other_memories(make_engine: Any) -> None:
    bank = Bank()
    make_engine(bank=bank).answer(ask(documents=FACTS, memory=LORA))
    assert not reused(make_engine("gpt2", bank=bank).answer(ask(documents=FACTS, memory=LORA)))


def test_what_was_rolled_back_is_not_tried_again_and_what_broke_off_is(
    make_engine: Any, trained: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(bank=Bank())
    wild = replace(LORA, learning_rate=10.0, max_kl=0.01)
    answers = [engine.answer(ask(documents=FACTS, memory=wild)) for _ in range(2)]
    assert trained == [1]
    assert [a.memory.rolled_back for a in answers] == [True, True]

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(fastmem, "memorize", full)
        assert engine.answer(ask(documents=FACTS, memory=LORA)).memory.rolled_back
    assert not engine.answer(ask(documents=FACTS, memory=LORA)).memory.rolled_back


def test_a_restart_does_not_try_again_what_was_rolled_back(
    make_engine: Any, tmp_path: Path, trained: list[int]
) -> None:
    request = ask(documents=FACTS, memory=replace(LORA, learning_rate=10.0, max_kl=0.01))
    first = make_engine(bank=Bank(tmp_path / "bank")).answer(request)
    again = make_engine(bank=Bank(tmp_path / "bank")).answer(request)
    assert first.memory.rolled_back
    assert again.memory.rolled_back
    assert (trained, reused(again), again.memory.reason) == ([1], True, first.memory.reason)
    assert again.token_ids == first.token_ids
    bank, other = Bank(tmp_path / "bank"), Bank(tmp_path / "other")
    (entry,) = bank.entries()
    assert [file.name for file in entry.path.iterdir()] == ["memograft.json"]
    bank.export(entry.id, tmp_path / "it.zip")
    assert other.take(tmp_path / "it.zip").id == other.take(entry.path).id == entry.id
    assert reused(make_engine(bank=other).answer(request))


def test_a_restart_forgets_nothing(make_engine: Any, tmp_path: Path, trained: list[int]) -> None:
    request = ask(documents=FACTS, memory=LORA)
    first = make_engine(bank=Bank(tmp_path / "bank")).answer(request)
    again = make_engine(bank=tmp_path / "bank").answer(request)
    assert trained == [1]
    assert reused(again)
    assert first.token_ids == again.token_ids
    (entry,) = Bank(tmp_path / "bank").entries()
    handle = make_engine().load_memory(entry.path)  # an entry is a normal saved memory
    assert handle.id == entry.id == again.memory.id
    assert [d.text for d in handle.documents] == FACTS


def test_a_handle_and_a_request_share_an_entry(make_engine: Any, trained: list[int]) -> None:
    engine = make_engine(bank=Bank())
    handle = engine.memorize(FACTS, LORA)
    answer = engine.answer(ask(documents=FACTS, memory=LORA))
    assert trained == [1]
    assert reused(answer)
    assert answer.memory.id == handle.id
    assert engine.memorize(FACTS, LORA).report.reused


@pytest.mark.parametrize("name", ["memograft.json", "adapter_model.safetensors"])
def test_a_flipped_byte_is_said_and_made_anew(make_engine: Any, tmp_path: Path, name: str, trained: list[int]) -> None:
    request = ask(documents=FACTS, memory=LORA)
    first = make_engine(bank=Bank(tmp_path)).answer(request)
    file = next(tmp_path.iterdir()) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    bank = Bank(tmp_path)
    engine = make_engine(bank=bank)
    with pytest.warns(UserWarning, match=rf"{name} is damaged .* \(the bank has removed it, and it is made anew\)"):
        again = engine.answer(request)
    assert (trained, reused(again), bank.statistics.damaged) == ([1, 1], False, 1)
    assert again.token_ids == first.token_ids
    assert reused(make_engine(bank=Bank(tmp_path)).answer(request))


class TestBudgets:
    """The least recently used memory is removed first."""

    def fill(self, make_engine: Any, bank: Bank) -> Engine:
        engine: Engine = make_engine(bank=bank)
        for fact in FACTS:
            engine.answer(ask(documents=[fact], memory=LORA))
        for n, entry in enumerate(sorted(bank.entries(), key=lambda e: e.id)):
            os.utime(entry.path, (n, n))
        return engine

    def test_on_the_disk(self, make_engine: Any, tmp_path: Path) -> None:
        bank = Bank(tmp_path)
        self.fill(make_engine, bank)
        newest, middle, oldest = bank.entries()
        bank.pin(oldest.id[:8])
        removed = bank.gc(oldest.size + newest.size)
        assert [entry.id for entry in removed] == [middle.id]
        assert [entry.id for entry in bank.gc(1)] == [newest.id]
        assert [(entry.id, entry.pinned) for entry in bank.entries()] == [(oldest.id, True)]
        bank.unpin(oldest.id)
        bank.gc(1)
        assert bank.entries() == list(tmp_path.iterdir()) == []

    def test_the_bound_holds_by_itself(self, make_engine: Any, tmp_path: Path) -> None:
        size = 0
        for count in (1, 2, 3):
            bank = Bank(tmp_path / str(count), max_bytes=size * count or None)
            self.fill(make_engine, bank)
            assert len(bank.entries()) == (count if size else 3)
            size = size or max(entry.size for entry in bank.entries())

    def test_use_makes_young(self, make_engine: Any, tmp_path: Path) -> None:
        bank = Bank(tmp_path)
        engine = self.fill(make_engine, bank)
        oldest = bank.entries()[-1]
        text = engine.load_memory(oldest.path).documents[0].text
        assert reused(engine.answer(ask(documents=[text], memory=LORA)))
        assert bank.entries()[0].id == oldest.id

    def test_in_memory(self, make_engine: Any) -> None:
        engine = make_engine(bank=Bank())
        one = engine.memorize(FACTS[:1], LORA).nbytes
        bank = Bank(memory_bytes=2 * one)
        engine = make_engine(bank=bank)
        for fact in FACTS:
            engine.answer(ask(documents=[fact], memory=LORA))
        assert (bank.statistics.held, bank.statistics.held_bytes) == (2, 2 * one)
        assert [reused(engine.answer(ask(documents=[fact], memory=LORA))) for fact in FACTS[::-1]] == [
            True,
            True,
            False,
        ]


def test_entries_are_named_by_what_their_ids_begin_with(make_engine: Any, tmp_path: Path) -> None:
    bank = Bank(tmp_path)
    make_engine(bank=bank).answer(ask(documents=FACTS, memory=LORA))
    (entry,) = bank.entries()
    for wrong in ("", "zz"):
        with pytest.raises(MemoryFormatError, match=f"must name one memory of .*, got '{wrong}', which matches none"):
            bank.entry(wrong)
    bank.remove(entry.id[:6])
    assert list(tmp_path.iterdir()) == []
    assert bank.statistics.held == 0


def test_bad_settings(tmp_path: Path) -> None:
    for bad in (0, -1, 1.5, True):
        with pytest.raises(SettingsError, match="`max_bytes` must be a positive number of bytes, got"):
            Bank(max_bytes=bad)  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    with pytest.raises(MemoryFormatError, match="cannot be used as a bank's folder"):
        Bank(tmp_path / "file")


def test_a_folder_that_cannot_be_written_to_costs_the_entry_only(make_engine: Any, tmp_path: Path) -> None:
    bank = Bank(tmp_path / "bank")
    engine = make_engine(bank=bank)
    (tmp_path / "bank").rmdir()
    (tmp_path / "bank").write_text("")
    with pytest.warns(UserWarning, match="could not be kept in"):
        answer = engine.answer(ask(documents=FACTS, memory=LORA))
    assert answer.memory.steps == 2


def test_what_killed_processes_left_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / f".{'ab' * 16}-{'0' * 32}"
    left.mkdir()
    old = tmp_path / f".{'cd' * 16}-{'0' * 32}-old"
    old.mkdir()
    Bank(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cd" * 16]


def test_a_bank_costs_no_import(tmp_path: Path) -> None:
    code = f"import sys; from memograft import Bank; Bank({str(tmp_path)!r}); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_memories_move_between_banks(make_engine: Any, tmp_path: Path) -> None:
    here, there = Bank(tmp_path / "here"), Bank(tmp_path / "there")
    request = ask(documents=FACTS, memory=LORA)
    first = make_engine(bank=here).answer(request)
    (entry,) = here.entries()
    assert here.export(entry.id[:8], tmp_path / "one.zip").id == entry.id
    assert {path.name for path in tmp_path.iterdir()} == {"here", "there", "one.zip"}
    assert there.take(tmp_path / "one.zip").id == entry.id
    again = make_engine(bank=there).answer(request)
    assert reused(again)
    assert again.token_ids == first.token_ids
    assert Bank(tmp_path / "third").take(entry.path).id == there.take(entry.path).id == entry.id


def test_what_is_no_memory_is_not_taken(make_engine: Any, tmp_path: Path) -> None:
    bank = Bank(tmp_path / "bank")
    make_engine(bank=bank).answer(ask(documents=FACTS, memory=LORA))
    (entry,) = bank.entries()
    text = tmp_path / "text.zip"
    text.write_text("no zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("../../escape.txt", "x")
    bank.export(entry.id, tmp_path / "one.zip")
    content = bytearray((tmp_path / "one.zip").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.zip").write_bytes(content)
    climbing = Path(shutil.copytree(entry.path, tmp_path / "climbing"))
    resealed(climbing, id="../../outside")
    for path, said in {
        "text.zip": "is not an exported memory",
        "other.zip": "is not an exported memory .*memograft.json",
        "flipped.zip": "is not an exported memory|is damaged",
        "nowhere": "memograft.json is damaged .*missing",
        "climbing": r"must hold a memory with an id of 32 hex digits, got '../../outside'",
    }.items():
        with pytest.raises(MemoryFormatError, match=said):
            bank.take(tmp_path / path)
    assert [path.name for path in (tmp_path / "bank").iterdir()] == [entry.id]
    with pytest.raises(MemoryFormatError, match="needs a folder, got none"):
        Bank().take(entry.path)
