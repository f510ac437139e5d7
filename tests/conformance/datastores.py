"""`build_datastore`: the forms of examples, and the errors for values that are no examples."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance.case import Case
from conformance.front import Front, Message, user
from conformance.pages import DRENNIA, EXAMPLE, GORVALD, PAGE, QUESTION, TORSTAD, VELMORA
from memograft import Datastore, Document, Rtd
from memograft.errors import ModelMismatchError, SettingsError

__all__ = ["Datastores"]

HISTORY: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [{"type": "text-plain", "text": PAGE, "id": "p"}, {"type": "text", "text": VELMORA}],
    },
    {"role": "assistant", "content": TORSTAD},
    *user(DRENNIA),
    {"role": "assistant", "content": GORVALD},
]


def learned(store: Datastore) -> list[tuple[str, str]]:
    """(prompt, answer) of each example, in order."""
    sources = [store.source(n) for n in range(len(store.ids()))]
    return [(source.prompt, source.text) for source in sources]


class Datastores(Case):
    """Examples in all forms."""

    def test_examples_of_all_kinds_are_learned(self, plain: Front) -> None:
        history, asked = plain.conversation(HISTORY), plain.conversation(user(VELMORA))
        answer = plain.conversation([{"role": "assistant", "content": TORSTAD}])[0]
        pair, page = (VELMORA, TORSTAD), plain.document(PAGE, "p", {"page": 3})
        cases: list[tuple[Any, list[tuple[str, str]]]] = [
            (page, [("", PAGE)]),
            (Document(PAGE, "p", {"page": 3}), [("", PAGE)]),
            (PAGE, [("", PAGE)]),
            ({"text": PAGE, "id": "t"}, [("", PAGE)]),
            (pair, [pair]),
            ([VELMORA, TORSTAD], [pair]),
            ((VELMORA, answer), [pair]),
            ((asked, TORSTAD), [pair]),
            ((asked[0], TORSTAD), [pair]),
            ((user(VELMORA), TORSTAD), [pair]),
            (([page], VELMORA, TORSTAD), [pair]),
            (([PAGE, {"text": QUESTION}], VELMORA, TORSTAD), [pair]),
            (EXAMPLE, [pair]),
            ({"question": VELMORA, "answer": TORSTAD, "documents": [page]}, [pair]),
            ({"messages": asked, "answer": TORSTAD}, [pair]),
            (history, [pair, (DRENNIA, GORVALD)]),
            (tuple(history), [pair, (DRENNIA, GORVALD)]),
        ]
        for item, expected in cases:
            with plain.build_datastore([item], progress=False) as store:
                assert learned(store) == expected, item

    def test_a_document_keeps_its_id_and_metadata(self, plain: Front) -> None:
        cyclic: dict[str, Any] = {}
        cyclic["self"] = cyclic
        odd = {"path": Path("/a"), "nan": math.nan, "cyclic": cyclic, "page": 3}
        for item in (plain.document(PAGE, "p", odd), {"prompt": "a?", "answer": "b", "id": "p", "metadata": odd}):
            with plain.build_datastore([item], progress=False) as store:
                source = store.source(0)
            assert source.id == "p"
            assert (source.metadata["path"], source.metadata["page"]) == ("/a", 3)
            assert json.dumps(dict(source.metadata), allow_nan=False)

    def test_documents_of_an_example_stand_in_its_prompt(self, plain: Front) -> None:
        """A request with an example's documents is nearer to the example than one without them."""
        asked: list[Message] = [
            {
                "role": "user",
                "content": [{"type": "text-plain", "text": PAGE, "id": "p"}, {"type": "text", "text": QUESTION}],
            }
        ]
        for example in (([plain.document(PAGE, "p")], QUESTION, TORSTAD), (plain.conversation(asked), TORSTAD)):
            with plain.build_datastore([example], progress=False) as store:
                rtd = Rtd(store, weight=0.9)
                told, alone = (plain.ask(user(QUESTION), documents=d, datastore=rtd) for d in ([PAGE], []))
            assert told.text == TORSTAD
            found = [said.report["references"]["sources"][0]["probability"] for said in (told, alone)]
            assert found[0] > found[1]

    def test_what_is_no_example_is_refused_before_anything_is_learned(self, tmp_path: Path) -> None:
        chat = self.front.named("no such model")  # the model is not loaded
        system, asked, answer = chat.conversation(HISTORY)[:3]
        page = chat.document(PAGE, "p")
        wrong = [
            (3, r"examples\[1\]: an example must be .*, got int; a conversation is one example"),
            (None, "got NoneType; a conversation is one example"),
            (asked, rf"got {type(asked).__name__}; a conversation is one example: write \[\[...\]\]"),
            ([], "got list of 0; write messages in a list of their own"),
            ((VELMORA, "a", "b", "c"), "got tuple of 4"),
            (user("A") * 4, "there is none with text, got user, user, user, user; add the answer"),
            ([system, asked], r"examples\[1\]: a conversation is learned from .*, got system, user; add the answer"),
            ([answer], r"examples\[1\]: .* that answer something, and there is none with text, got assistant;"),
            ((VELMORA, " "), r"examples\[1\] needs a text to learn from, got ' '; give a prompt and its `answer`"),
            ((VELMORA, 3), r"examples\[1\] needs a text to learn from, got 3"),
            ((VELMORA, None), r"examples\[1\] needs a text to learn from, got None"),
            (chat.document("", "e"), r"examples\[1\] needs a text to learn from, got ''"),
            ({"prompt": VELMORA}, r"examples\[1\] needs a text to learn from, got None"),
            ({"text": PAGE, "metadata": 3}, r"examples\[1\]: its `metadata` must be a mapping, got int"),
            ((3, TORSTAD), r"examples\[1\]: what is asked must be a text or a list of messages, got int"),
            ((page, TORSTAD), r"examples\[1\]: what is asked must be a text or a list of messages, got Document"),
            (([system, user("A")], TORSTAD), "what is asked must be a text or a list of messages, got list"),
            ((page, VELMORA, TORSTAD), r"examples\[1\]: `documents` must be a list of documents, got one Document"),
            (([3], VELMORA, TORSTAD), r"examples\[1\]: documents\[0\] must be a Document, a string, or a mapping"),
        ]
        for item, match in wrong:
            with pytest.raises(SettingsError, match=match):
                chat.build_datastore([(VELMORA, TORSTAD), item], path=tmp_path / "store")
        assert not (tmp_path / "store").exists()

    def test_one_example_where_a_list_belongs(self, plain: Front) -> None:
        for one in (
            PAGE,
            EXAMPLE,
            plain.document(PAGE, "p"),
            plain.conversation(user(PAGE))[0],
            Document(PAGE),
            3,
            None,
        ):
            with pytest.raises(SettingsError, match=r"`examples` must be a list of examples, got one \w+; write ex"):
                plain.build_datastore(one)

    def test_the_same_folder_goes_on(self, plain: Front, tmp_path: Path) -> None:
        page = plain.document(PAGE, "p")
        with plain.build_datastore([page, (VELMORA, TORSTAD)], path=tmp_path, progress=False) as store:
            entries, first = len(store), store.ids()
        with plain.build_datastore([page, (VELMORA, TORSTAD)], path=str(tmp_path), progress=False) as store:
            assert len(store) == entries
        with plain.build_datastore([(DRENNIA, GORVALD), page], path=tmp_path, progress=False) as store:
            assert store.ids()[:2] == first
            assert len(store.ids()) == 3
        with pytest.raises(ModelMismatchError, match="holds keys of place 'ffn_input' under index 'flat'"):
            plain.build_datastore([page], path=tmp_path, index="sq8")

    def test_settings_reach_the_core(self, plain: Front, tmp_path: Path) -> None:
        given = {"place": "head_input", "index": "hnsw", "stride": 8, "batch_size": 2}
        with plain.build_datastore([PAGE * 3], path=tmp_path / "store", progress=False, **given) as store:
            assert (store.path, store.header.place, store.header.index) == (tmp_path / "store", "head_input", "hnsw")
        for wrong in ({"batch_size": 0}, {"stride": 0}, {"index": "x"}, {"place": "x"}):
            with pytest.raises(SettingsError, match=f"`{next(iter(wrong))}`"):
                plain.build_datastore([PAGE], progress=False, **wrong)

    def test_examples_that_come_one_by_one(self, plain: Front, tmp_path: Path) -> None:
        """Examples before an invalid one are kept."""

        def coming() -> Iterator[Any]:
            yield from ((f"What is {n}?", f"It is {n}.") for n in range(10))
            yield 3

        with pytest.raises(SettingsError, match=r"examples\[10\]: an example must be a "):
            plain.build_datastore(coming(), path=tmp_path, batch_size=1, progress=False)
        with Datastore.open(tmp_path, read_only=True) as store:
            assert 0 < len(store.ids()) <= 10
