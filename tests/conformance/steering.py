"""Datastores as a setting and in calls: their forms, when they are opened, and their use with other options."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from blockbuster import blockbuster_ctx
from pydantic import BaseModel

from conformance.case import Case
from conformance.fixtures import Seen
from conformance.front import Front, user
from conformance.pages import DRENNIA, GORVALD, OTHER, PAGE, QUESTION, TORSTAD, VELMORA
from conformance.sameness import LOOK
from memograft import Datastore, Engine, FastMem, Rtd, shared_datastore
from memograft.errors import ModelMismatchError, SettingsError, StoreError

__all__ = ["Steering"]

NONE = r"`datastore` must be a Datastore, Rtd\(datastore, ...\), the folder of one, or None, got .*; make one with"


class Town(BaseModel):
    name: str


class Steering(Case):
    """The setting `datastore`, and the argument of calls."""

    def test_every_form(self, plain: Front, store: Datastore, seen: Seen) -> None:
        for value in (Rtd(store), store, store.path, str(store.path)):
            front = self.front.over(plain.engine, memory=None, max_tokens=8, datastore=value)
            for said in (front.ask(user(VELMORA)), plain.ask(user(VELMORA), datastore=value)):
                (rtd,) = seen.last.processors
                assert (rtd.k, rtd.weight, rtd.datastore.path) == (32, 0.3, store.path)
                assert said.report["references"] is not None
            assert front.ask(user(VELMORA), datastore=None).report["references"] is None

    def test_a_folder_is_opened_when_it_is_needed_and_anew_when_it_changed(self, plain: Front, tmp_path: Path) -> None:
        front = self.front.over(plain.engine, memory=None, datastore=tmp_path / "store")
        with pytest.raises(StoreError, match=r"store holds no datastore .*; make one with Datastore.build"):
            front.text(VELMORA)
        front.build_datastore([(VELMORA, TORSTAD)], path=tmp_path / "store", progress=False).close()
        front.text(VELMORA, max_tokens=4)
        opened = shared_datastore(tmp_path / "store")
        with Datastore.open(tmp_path / "store") as writer:
            writer.add(plain.engine, [(DRENNIA, GORVALD)], progress=False)
        front.text(VELMORA, max_tokens=4)
        again = shared_datastore(tmp_path / "store")
        assert again is not opened
        assert len(again.ids()) == 2

    @pytest.mark.parametrize("value", [3, True, "", "  ", [], object(), Datastore], ids=lambda value: f"{value!r:.12}")
    def test_what_is_no_datastore(self, plain: Front, value: Any) -> None:
        with pytest.raises(ValueError, match=NONE):
            self.front.named("tiny", datastore=value)
        with pytest.raises(SettingsError, match=NONE):
            plain.text(VELMORA, datastore=value)

    def test_a_datastore_of_another_model(self, plain: Front, random_engine: Engine, seen: Seen) -> None:
        match = "was built with another model .*; build it with this engine"
        other = Datastore.build(random_engine, [("a?", "b")], progress=False)
        for value in (other, Rtd(other)):
            with pytest.raises(ValueError, match=match):
                self.front.over(plain.engine, datastore=value)
        for value in (other, Rtd(other), other.path):
            with pytest.raises(ModelMismatchError, match=match):
                plain.text(VELMORA, datastore=value)
            with pytest.raises(ModelMismatchError, match=match):
                list(plain.stream(user(VELMORA), datastore=value))
        assert seen.batches == []
        other.close()

    def test_copies_share_it_and_pickles_open_its_folder(self, store: Datastore) -> None:
        front = self.front.named("tiny", memory=None, max_tokens=8, datastore=store.path)
        live = self.front.over(front.engine, datastore=Rtd(store, weight=0.9)).own
        assert copy.deepcopy(live).datastore is live.datastore
        for twin in (copy.deepcopy(front.own), pickle.loads(pickle.dumps(front.own)), front.own.model_copy()):
            assert front.around(twin).ask(user(VELMORA)).facts() == front.ask(user(VELMORA)).facts()

    def test_callers_with_and_without_share_batches_and_block_nothing(
        self, plain: Front, store: Datastore, seen: Seen, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rtd, fast = Rtd(store, weight=0.9, gate=None), FastMem()  # the page changes the prompt that was learned
        kinds: list[dict[str, Any]] = [
            {"datastore": rtd},
            {"datastore": str(store.path)},
            {},
            {"datastore": rtd, "memory": fast, "documents": [PAGE]},
            {"memory": fast, "documents": [PAGE]},
        ]
        alone = [plain.text(VELMORA, **options) for options in kinds]
        assert alone[0] == alone[3] == TORSTAD != alone[2]
        seen.batches.clear()
        monkeypatch.setattr("memograft.serving.queue._GATHER", 2)  # waits even if requests arrive slowly

        async def together() -> list[str]:
            with blockbuster_ctx():
                return [a.text for a in await asyncio.gather(*(plain.aask(user(VELMORA), **o) for o in kinds * 3))]

        assert asyncio.run(together()) == alone * 3
        assert len(seen.batches) <= 4

    def test_beside_documents_that_are_memorized(self, chat: Front, store: Datastore) -> None:
        said = chat.ask(user(QUESTION), documents=[PAGE, OTHER], datastore=Rtd(store, weight=0.4))
        assert (said.text, len(said.report["memorized"]), said.citations) == (PAGE, 1, ())

    def test_beside_schemas_and_forced_calls(self, plain: Front, store: Datastore) -> None:
        rtd = Rtd(store, weight=0.9)
        front = self.front.over(plain.engine, memory=None, max_tokens=40, datastore=rtd)
        assert isinstance(front.structured(Town, VELMORA), Town)
        called = front.ask(user(VELMORA), tools=[LOOK], tool_choice="any")
        assert [name for name, _ in called.calls] == ["look"]
        assert (called.text, called.citations) == ("", ())
        json.dumps(called.report["references"], allow_nan=False)
