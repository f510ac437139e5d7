"""Documents' keys and values in a bank: answers do not change, in memory and after a restart."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from families import FAMILIES, build
from memograft import Bank, Cad, Engine
from memograft.errors import MemoryFormatError, SettingsError
from memograft.memory.prefix_folder import about
from memograft.model import prefill as prefilling
from test_bank import LORA
from test_engine import FACTS, ask


class TestPrefixes:
    """Keys and values of documents are reused with every memory and without one."""

    @pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "phi", "olmo2"])
    def test_answers_are_the_same(self, make_engine: Any, family: str) -> None:
        bank = Bank()
        engine, plain = make_engine(family, bank=bank), make_engine(family)
        handle = plain.memorize(FACTS[:1], LORA)
        requests = [
            ask(documents=FACTS),
            ask("Where is it?", documents=FACTS, memory=LORA),
            ask(documents=FACTS, memory=replace(LORA, relevance="auto")),
            ask(documents=[*FACTS[:2], "Something else."], memory=LORA),
            ask(documents=FACTS[:1]),
            ask(memory=handle),
            ask(documents=FACTS, processors=[Cad()]),
            ask("No documents?"),
        ]
        alone = [plain.answer(request) for request in requests]
        answers = [engine.answer(request) for request in requests]
        assert [a.token_ids for a in answers] == [a.token_ids for a in alone]
        cached = [a.usage.cached_tokens for a in answers]
        assert cached[0] == cached[7] == 0
        assert cached[1] == cached[2] == cached[6] > cached[3] > cached[4] > 0
        assert [a.token_ids for a in engine.answer_batch(requests)] == [a.token_ids for a in alone]

    def test_the_bound_holds(self, make_engine: Any) -> None:
        engine = make_engine(bank=Bank())
        engine.answer(ask(documents=FACTS[:2]))
        one = engine._model.bank.prefixes.nbytes
        bank = Bank(prefix_bytes=2 * one)
        engine = make_engine(bank=bank)
        for fact in FACTS:
            engine.answer(ask(documents=[fact, FACTS[0]]))
            assert 0 < bank.prefixes.nbytes <= 2 * one
        for n, cached in ((2, True), (0, False)):
            assert bool(engine.answer(ask(documents=[FACTS[n], FACTS[0]])).usage.cached_tokens) == cached

    def test_none_is_held(self, make_engine: Any) -> None:
        engine = make_engine(bank=Bank(prefix_bytes=0))
        answers = [engine.answer(ask(documents=FACTS)) for _ in range(2)]
        assert [a.usage.cached_tokens for a in answers] == [0, 0]
        with pytest.raises(SettingsError, match="`prefix_bytes` must be a number of bytes, or 0 to hold none, got -1"):
            Bank(prefix_bytes=-1)

    @pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text"])
    @pytest.mark.parametrize("window", [512, 64, 16, 2])
    def test_behind_sliding_windows(
        self, tokenizer: Any, family: str, window: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With windows as long as the whole prompt, as some of its documents, or as a few tokens."""
        monkeypatch.setitem(FAMILIES, family, FAMILIES[family] | {"sliding_window": window})
        model = build(family, seed=1)
        requests = [ask(documents=FACTS[:2]), ask("Where?", documents=FACTS, memory=LORA), ask(documents=FACTS)]
        with Engine(model, tokenizer, bank=Bank()) as engine, Engine(model, tokenizer) as plain:
            alone = [plain.answer(request).token_ids for request in requests]
            answers = [engine.answer(request) for request in requests]
            assert [a.token_ids for a in answers] == alone
            assert [a.token_ids for a in engine.answer_batch(requests)] == alone
        first, second, third = (a.usage.cached_tokens for a in answers)
        assert first == 0 < second < third

    def test_documents_in_common_are_held_once(self, make_engine: Any) -> None:
        engine = make_engine(bank=Bank())
        bank = engine._model.bank
        engine.answer(ask(documents=FACTS[:1]))
        one = bank.statistics.prefix_bytes
        engine.answer(ask(documents=FACTS[:2]))
        two = bank.statistics.prefix_bytes
        engine.answer(ask(documents=[FACTS[0], FACTS[2]]))
        assert one < two < bank.statistics.prefix_bytes < 2 * two
        found = [bank.statistics.prefix_tokens, engine.answer(ask(documents=FACTS[:2])).usage.cached_tokens]
        assert bank.statistics.prefix_tokens == sum(found)


class TestPrefixFiles:
    """Keys and values in a bank's folder: other processes neither prefill nor memorize a known context."""

    def tokens_read(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """The tokens of each pass over prompts."""
        read: list[int] = []
        run = prefilling.run
        monkeypatch.setattr(prefilling, "run", lambda *a: (read.append(a[1].numel()), run(*a))[1])
        return read

    @pytest.mark.parametrize("family", ["llama", "gpt2", "phi", "olmo2"])
    def test_a_restart_forgets_none(
        self, make_engine: Any, tmp_path: Path, family: str, trained: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        requests = [ask(documents=FACTS, memory=LORA), ask("Where is it?", documents=FACTS), ask(documents=FACTS[:2])]
        plain = [make_engine(family).answer(request) for request in requests]
        make_engine(family, bank=Bank(tmp_path, prefix_files="exact")).answer(requests[0])
        engine = make_engine(family, bank=Bank(tmp_path, prefix_files="exact"))
        trained.clear()
        answers = [engine.answer(request) for request in requests]
        assert [a.token_ids for a in answers] == [a.token_ids for a in plain]
        assert all(a.usage.cached_tokens > 20 for a in answers)
        assert trained == []

    def test_a_handle_is_loaded_without_a_pass(
        self, make_engine: Any, tmp_path: Path, trained: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = make_engine(bank=Bank(tmp_path / "bank", prefix_files="exact"))
        engine.memorize(FACTS, LORA).save(tmp_path / "handle")
        trained.clear()
        engine = make_engine(bank=Bank(tmp_path / "bank", prefix_files="exact"))
        read = self.tokens_read(engine, monkeypatch)
        handle = engine.load_memory(tmp_path / "handle")
        again = engine.memorize(FACTS, LORA)
        assert handle.segment is not None
        assert (trained, again.report.reused) == ([], True)
        assert sum(read) < 15, "the question's place, and none of the documents"
        assert (
            engine.answer(ask(memory=handle)).token_ids
            == make_engine().answer(ask(documents=FACTS, memory=LORA)).token_ids
        )

    def test_int8_is_smaller_and_close(self, make_engine: Any, tmp_path: Path) -> None:
        request, sizes, logits = ask(documents=FACTS), {}, {}
        for form in ("exact", "int8"):
            engine = make_engine(bank=Bank(tmp_path / form, prefix_files=form))
            engine.answer(request)
            warm = engine.next_token_logprobs(request)
            bank = Bank(tmp_path / form, prefix_files=form)
            logits[form] = make_engine(bank=bank).next_token_logprobs(request)
            sizes[form] = sum(entry.size for entry in bank.entries())
            assert bank.statistics.prefix_tokens > 20
        assert torch.equal(logits["exact"], warm)
        assert 0 < (logits["int8"] - logits["exact"]).abs().max() < 0.1
        assert sizes["int8"] < 0.75 * sizes["exact"]  # pieces are tiny, and JSON, x and residual are not rounded

    @pytest.mark.parametrize("name", ["prefix.json", "prefix.safetensors"])
    def test_a_flipped_byte_is_said_and_made_anew(self, make_engine: Any, tmp_path: Path, name: str) -> None:
        request = ask(documents=FACTS)
        first = make_engine(bank=Bank(tmp_path, prefix_files="exact")).answer(request)
        entries = Bank(tmp_path).entries()
        file = entries[1].path / name
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        bank = Bank(tmp_path, prefix_files="exact")
        engine = make_engine(bank=bank)
        with pytest.warns(UserWarning, match=rf"{name} is damaged .* \(the bank has removed it, and it is made anew\)"):
            again = engine.answer(request)
        assert again.token_ids == first.token_ids
        assert bank.statistics.damaged == 1
        assert {entry.id for entry in bank.entries()} == {entry.id for entry in entries}

    def test_an_entry_in_anothers_place_is_damaged(self, make_engine: Any, tmp_path: Path) -> None:
        engine = make_engine(bank=Bank(tmp_path, prefix_files="exact"))
        for question in (ask(documents=FACTS[:1]), ask(documents=FACTS[1:2])):
            engine.answer(question)
        one, other = Bank(tmp_path).entries()
        shutil.rmtree(one.path)
        shutil.copytree(other.path, one.path)
        engine = make_engine(bank=Bank(tmp_path, prefix_files="exact"))
        with pytest.warns(UserWarning, match=f"is damaged \\(it belongs to {other.id}\\)"):
            engine.answer_batch([ask(documents=FACTS[:1]), ask(documents=FACTS[1:2])])

    def test_what_follows_goes_before_what_it_follows(self, make_engine: Any, tmp_path: Path) -> None:
        bank = Bank(tmp_path, prefix_files="exact")
        make_engine(bank=bank).answer(ask(documents=FACTS))
        ends = []
        while entries := bank.entries():
            what = {entry.id: about(entry.path)["tokens"][1] for entry in entries}
            ends += [what[entry.id] for entry in bank.gc(sum(entry.size for entry in entries) - 1)]
        assert ends == sorted(ends, reverse=True)
        assert len(ends) == len(FACTS)

    def test_use_makes_young_whether_held_or_not(self, make_engine: Any, tmp_path: Path) -> None:
        engine = make_engine(bank=Bank(tmp_path, prefix_files="exact"))
        again = make_engine(bank=Bank(tmp_path, prefix_files="exact"))
        for asked in (engine, engine, again):  # new, in memory, on disk only
            for n, entry in enumerate(Bank(tmp_path).entries()):
                os.utime(entry.path, (n, n))
            asked.answer(ask(documents=FACTS))
            first, *others = sorted(Bank(tmp_path).entries(), key=lambda entry: about(entry.path)["tokens"][0])
            assert others[-1].used > 10
            assert first.used >= max(entry.used for entry in others)

    def test_dtypes_have_their_own(self, make_engine: Any, tmp_path: Path) -> None:
        ids = []
        for dtype in (torch.float32, torch.bfloat16):
            engine = make_engine(bank=Bank(tmp_path, prefix_files="exact"), dtype=dtype)
            assert engine.answer(ask(documents=FACTS)).usage.cached_tokens == 0
            ids.append({entry.id for entry in Bank(tmp_path).entries()})
        assert len(ids[1]) == 2 * len(ids[0])

    def test_bad_settings(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match='`prefix_files` must be None, "exact" or "int8", got \'fp8\''):
            Bank(tmp_path, prefix_files="fp8")  # type: ignore[arg-type]
        with pytest.raises(
            SettingsError, match=r"`prefix_files` needs a folder, got 'exact' without; pass Bank\(folder"
        ):
            Bank(prefix_files="exact")

    def test_prefixes_are_not_exported(self, make_engine: Any, tmp_path: Path) -> None:
        bank = Bank(tmp_path / "bank", prefix_files="exact")
        make_engine(bank=bank).answer(ask(documents=FACTS[:1]))
        (entry,) = bank.entries()
        assert entry.kind == "prefix"
        with pytest.raises(
            MemoryFormatError, match=f"`export` writes memories, but {entry.id} is a prefix; models make it"
        ):
            bank.export(entry.id, tmp_path / "file.zip")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["bank"]
