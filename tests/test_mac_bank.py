"""`MacBank`: what is added, replaced, removed and merged, and what happens to damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gists import parts_of
from macs import MORE, bank_of, saved_mac
from memograft import Document, Engine, Mac, MacBank
from memograft.errors import (
    MemoryFormatError,
    SettingsError,
    StoreLockedError,
)
from memograft.memory.gist.compress import parts
from memograft.memory.mac import folder
from memograft.memory.mac.bank import inspected
from memograft.storage.locks import WriterLock
from test_engine import FACTS, ask


@pytest.fixture
def mac(engine: Engine, tmp_path: Path) -> Mac:
    return Mac(str(bank_of(engine, tmp_path).path))


def test_documents_are_added_once(engine: Engine, mac: Mac) -> None:
    bank = MacBank(mac.bank)
    assert bank.add(engine, [*FACTS, *MORE[:2], MORE[0]], progress=False) == 2
    assert bank.add(engine, MORE[:2], progress=False) == 0
    assert bank.ids == tuple(Document(text).id for text in [*FACTS, *MORE[:2]])
    assert len(bank) == len(bank.entries) == len(FACTS) + 2
    assert bank.nbytes == bank.modulations().nbytes


@torch.no_grad()
def test_each_has_the_modulation_that_it_has_alone(engine: Engine, mac: Mac) -> None:
    bank, model = MacBank(mac.bank), parts_of(engine)
    weights = bank.weights(model.backbone)
    for text, own in zip(FACTS, bank.modulations(), strict=True):
        (ids,) = parts(model.prompts, Document(text), weights.window)
        torch.testing.assert_close(weights.documents(model.backbone, [ids], 0)[0], own.float(), rtol=2e-3, atol=2e-3)


def test_a_long_document_has_several(engine: Engine, mac: Mac) -> None:
    long = Document(" ".join(FACTS * 3), "long")
    bank = MacBank(mac.bank)
    bank.add(engine, [long], progress=False)
    assert sum(entry.ids == ("long",) for entry in bank.entries) > 1
    assert bank.remove(["long", "nowhere"]) == 1
    assert len(bank) == len(FACTS)


def test_another_text_of_the_same_id_replaces_it(engine: Engine, mac: Mac) -> None:
    bank = MacBank(mac.bank)
    bank.add(engine, [Document(FACTS[0], "page")], progress=False)
    old = bank.modulations()[-1]
    assert bank.add(engine, [Document(FACTS[0], "page")], progress=False) == 0
    assert bank.add(engine, [Document(FACTS[1], "page")], progress=False) == 1
    assert (len(bank), len(bank.entries)) == (len(FACTS) + 1, len(FACTS) + 1)
    assert not torch.equal(bank.modulations()[-1], old)


def test_documents_that_cannot_be_added(engine: Engine, mac: Mac) -> None:
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
def test_merging_in_steps_is_the_mean(engine: Engine, mac: Mac) -> None:
    """Of a long document's parts too, which have one id."""
    bank = MacBank(mac.bank)
    bank.remove(bank.ids)
    bank.add(engine, [Document(" ".join(FACTS * 3), "long")], progress=False)
    mean = bank.modulations().float().mean(0)
    for most in range(len(bank.entries), 0, -1):
        bank.merge(most)
    torch.testing.assert_close(bank.modulations()[0].float(), mean, rtol=2e-2, atol=2e-2)
    assert bank.entries[0].count > 2


def test_numbers_that_cannot_be_kept(engine: Engine, tmp_path: Path) -> None:
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


def test_the_nearest_are_merged(engine: Engine, mac: Mac) -> None:
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


def test_files_are_joined_when_they_are_many_or_mostly_removed(engine: Engine, tmp_path: Path) -> None:
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


def test_a_crash_before_the_commit_loses_nothing(engine: Engine, mac: Mac, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_one_writer_at_a_time(engine: Engine, mac: Mac) -> None:
    lock = WriterLock(Path(mac.bank) / "writer.lock")
    try:
        with pytest.raises(StoreLockedError):
            MacBank(mac.bank, lock_timeout=0).remove([Document(FACTS[0]).id])
        assert len(MacBank(mac.bank)) == len(FACTS)
    finally:
        lock.release()


def test_damage_is_reported(engine: Engine, mac: Mac) -> None:
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


def test_other_models_and_folders_are_refused(make_engine: Any, mac: Mac, tmp_path: Path) -> None:
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
