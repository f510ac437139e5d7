"""A bank finds memories by content: in calls, streams, async, copies and after restarts."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conformance.case import Case
from conformance.front import Front, user
from conformance.pages import OTHER, PAGE, QUESTION
from conformance.sameness import every_way
from gists import saved_gist
from macs import saved_mac
from memograft import Bank, Compacted, Engine, FastMem, Gist, Kept, Mac, MacBank

__all__ = ["Banks"]

BESIDE = r"`bank` cannot be given beside an engine, which has its own or none, got .*; give it to the engine: Engine\("


class Banks(Case):
    """The field `bank`."""

    def banked(self, bank: Any) -> Front:
        return self.front.named("tiny", bank=bank, max_tokens=32)

    def test_documents_are_memorized_once_whatever_asks_and_after_a_restart(
        self, tmp_path: Path, trained: list[int]
    ) -> None:
        answers = []
        for _ in range(2):
            chat = self.banked(tmp_path)
            answers += every_way(chat, user(QUESTION), documents=[PAGE])
            chat.engine.close()  # the next front loads the model and reads the folder again
        assert [said.text for said in answers] == [PAGE] * 8
        assert sorted(said.report["reused"] for said in answers) == [False, *[True] * 7]
        assert len({said.report["memory_id"] for said in answers}) == 1
        assert trained == [1]

    def test_what_changed_is_memorized_anew(self, trained: list[int]) -> None:
        chat = self.banked(Bank())
        for page, reused in ((PAGE, False), (PAGE.replace("Lisbon", "Oslo"), False), (PAGE, True)):
            said = chat.ask(user(QUESTION), documents=[page, OTHER])
            assert (said.text, said.report["reused"], len(said.report["memorized"])) == (page, reused, 1)
        assert trained == [1, 1]
        chat.engine.close()

    def test_memorizing_the_same_documents_again_trains_nothing(self, tmp_path: Path, trained: list[int]) -> None:
        handles = []
        for _ in range(2):
            chat = self.banked(tmp_path)
            handles += [chat.memorize([PAGE]), chat.memorize([PAGE])]
            assert chat.text(QUESTION, memory=handles[-1]) == PAGE
            assert chat.ask(user(QUESTION), documents=[PAGE]).report["reused"] is True
            assert handles[-1].adapter is handles[-2].adapter is not None  # both share one adapter
            chat.engine.close()
        assert [handle.report.reused for handle in handles] == [False, True, True, True]
        assert len({handle.id for handle in handles}) == 1
        assert trained == [1]

    @pytest.mark.parametrize(
        "memory", [Kept(), Compacted(ratio=2), Compacted(FastMem(), 2), Gist], ids=["kept", "half", "both", "gist"]
    )
    def test_documents_are_carried_as_keys_and_values(self, tmp_path: Path, memory: Any) -> None:
        """In every way to ask: as a setting, and as a handle, also after a restart."""
        chat = self.banked(tmp_path)
        if memory is Gist:
            memory = Gist(str(saved_gist(chat.engine, tmp_path / "gist")))
        said = every_way(chat, user(QUESTION), documents=[PAGE], memory=memory)
        assert len({one.text for one in said}) == 1
        handle = chat.memorize([PAGE], memory)
        assert chat.text(QUESTION, memory=handle) == said[0].text
        folder = handle.save(tmp_path / "saved")
        chat.engine.close()
        again = self.banked(tmp_path)
        assert again.text(QUESTION, memory=again.engine.load_memory(folder)) == said[0].text
        again.engine.close()

    def test_answers_come_from_a_bank_of_modulations(self, tmp_path: Path) -> None:
        """In every way to ask, without documents and with them, and beside a request that has no memory."""
        chat = self.banked(None)
        bank = MacBank(tmp_path / "bank", saved_mac(chat.engine, tmp_path / "mac"))
        bank.add(chat.engine, [PAGE, OTHER], progress=False)
        memory = Mac(str(bank.path))
        said = every_way(chat, user(QUESTION), documents=[], memory=memory)
        assert len({one.text for one in said}) == 1
        assert {one.report["reason"] for one in said} == {memory.said}
        both = every_way(chat, user(QUESTION), documents=[PAGE], memory=replace(memory, memory=FastMem(relevance=None)))
        assert len({one.text for one in both}) == 1
        assert all(one.report["memorized"] for one in both)

    def test_objects_of_one_folder_share_an_engine(self, tmp_path: Path) -> None:
        chat = self.banked(tmp_path)
        for same in (
            self.banked(str(tmp_path)),
            self.front.named("tiny", model_kwargs={"bank": tmp_path}),
            chat.around(pickle.loads(pickle.dumps(chat.own))),
            chat.around(copy.deepcopy(chat.own)),
        ):
            assert same.engine is chat.engine
        for other in (self.front.named("tiny"), self.banked(tmp_path / "other")):
            assert other.engine is not chat.engine

    def test_a_bank_itself(self, tmp_path: Path) -> None:
        """A Bank object is identified by its identity; pickles and JSON contain its folder instead."""
        bank = Bank(tmp_path)
        chat = self.banked(bank)
        assert self.front.named("tiny", model_kwargs={"bank": bank}).engine is chat.engine
        assert self.banked(Bank(tmp_path)).engine is not chat.engine
        twin = copy.deepcopy(chat.own)
        assert twin.bank is bank
        assert chat.around(twin).engine is chat.engine
        assert json.loads(chat.own.model_dump_json())["bank"] == str(tmp_path)
        assert (pickle.loads(pickle.dumps(chat.own)).bank, chat.own.bank) == (str(tmp_path), bank)
        assert json.loads(self.banked(Bank()).own.model_dump_json())["bank"] is None
        assert f"bank=Bank({str(tmp_path)!r})" in repr(chat.own)

    def test_a_copy_with_a_bank_uses_it(self, tmp_path: Path) -> None:
        plain = self.banked(None)
        assert plain.ask(user(QUESTION), documents=[PAGE]).report["reused"] is False
        banked = plain.around(plain.own.model_copy(update={"bank": tmp_path}))
        assert banked.engine is not plain.engine
        banked.ask(user(QUESTION), documents=[PAGE])
        assert len(Bank(tmp_path).entries()) == 1
        assert plain.around(banked.own.model_copy(update={"bank": None})).engine is plain.engine

    def test_a_bank_beside_an_engine(self, tiny: Engine, tmp_path: Path) -> None:
        given: dict[str, Any]
        for given in ({"bank": tmp_path}, {"bank": Bank()}, {"model_kwargs": {"bank": str(tmp_path)}}):
            with pytest.raises(ValueError, match=BESIDE):
                self.front.over(tiny, **given)
        own = self.front.over(tiny)
        with pytest.raises(ValueError, match=BESIDE):
            own.around(own.own.model_copy(update={"bank": tmp_path})).text(QUESTION)

    @pytest.mark.parametrize(
        ("settings", "match"),
        [
            ({"bank": 3}, "`bank` must be a folder, a memograft.Bank, or None, got 3; leave it out for none"),
            ({"bank": ""}, "`bank` must be a folder, a memograft.Bank, or None, got ''"),
            ({"model_kwargs": {"bank": 3}}, "`bank` must be a folder, a memograft.Bank, or None, got 3"),
            (
                {"bank": "a", "model_kwargs": {"bank": "b"}},
                "`bank` was given twice, got 'a' and in `model_kwargs` 'b'; pass one of them",
            ),
            ({"model_kwargs": 3}, "Input should be a valid dictionary"),
        ],
    )
    def test_what_is_no_bank(self, settings: dict[str, Any], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            self.front.named("tiny", **settings)
