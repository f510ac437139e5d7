"""Documents in all forms, and the errors for values that are no documents."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest

from conformance.case import Case
from conformance.fixtures import Seen
from conformance.front import Front, Message, user
from conformance.pages import KNOWN, OTHER, PAGE, QUESTION
from memograft import Document
from memograft.chat import unmemorized
from memograft.errors import PromptTooLongError, SettingsError

__all__ = ["Documents"]

LONG = "The atlas of the southern seas was printed in Lisbon in the year 1712, and nobody has read it since then."


class Documents(Case):
    """Documents in calls, in messages and from retrievers."""

    def test_everything_that_is_a_document(self, chat: Front, seen: Seen) -> None:
        forms = {
            Document(PAGE).id: PAGE,
            "p": Document(PAGE, "p"),
            "m": {"text": PAGE, "id": "m"},
            "c": {"page_content": PAGE, "id": "c"},
            "f": chat.document(PAGE, "f"),
        }
        for id, form in forms.items():
            said = chat.ask(user(QUESTION), documents=(one for one in [form]))
            assert (said.report["documents"], said.report["memorized"], said.text) == ([id], [id], PAGE)
            assert seen.documents == [PAGE]

    @pytest.mark.parametrize("item", [1, None, b"bytes", ["nested"], {"no": "text"}, object(), {"text": 3}])
    def test_what_is_none_is_named_with_its_place(self, plain: Front, item: Any) -> None:
        said = rf"documents\[1\] must be a .*, got {type(item).__name__}.*; wrap it as \w+\("
        with pytest.raises(SettingsError, match=said):
            plain.ask(user(QUESTION), documents=[PAGE, item])

    def test_one_document_where_a_list_belongs(self, plain: Front) -> None:
        for one in (PAGE, {"text": PAGE}, Document(PAGE), plain.document(PAGE, "p"), 3):
            said = rf"`documents` must be a list of documents, got one {type(one).__name__}; write documents=\[...\]"
            with pytest.raises(SettingsError, match=said):
                plain.ask(user(QUESTION), documents=one)

    def test_empty_documents(self, chat: Front) -> None:
        said = chat.ask(user(QUESTION), documents=["", "  \n", chat.document("", "e"), PAGE])
        assert said.text == PAGE
        assert len(said.report["documents"]) == 4
        assert chat.text(QUESTION, documents=[""]) == KNOWN

    def test_metadata_that_is_no_json_is_kept_as_text(self, chat: Front) -> None:
        class Rude:
            def __str__(self) -> str:
                raise RuntimeError

        cyclic: dict[str, Any] = {}
        cyclic["self"] = cyclic
        odd = {"path": Path("/a"), "nan": math.nan, "cyclic": cyclic, "deep": {"x": [1, {2}]}, "rude": Rude()}
        (kept,) = chat.memorize([chat.document(PAGE, "p", odd)]).documents
        assert kept.metadata["path"] == "/a"
        assert (kept.metadata["nan"], kept.metadata["rude"]) == (None, "<Rude>")
        assert kept.metadata["deep"] == {"x": [1, "{2}"]}
        assert json.dumps(dict(kept.metadata), allow_nan=False)
        assert math.isnan(odd["nan"])  # the caller's object is not changed

    def test_a_document_longer_than_the_window(self, chat: Front) -> None:
        long = Document(" ".join([PAGE] * 100), "l")
        with pytest.raises(PromptTooLongError, match='overflow="drop" or "truncate"') as caught:
            chat.ask(user(QUESTION), documents=[long])
        assert caught.value.tokens > caught.value.limit
        report = chat.ask(user(QUESTION), documents=[PAGE, long], overflow="drop").report
        assert (len(report["documents"]), report["dropped"]) == (1, ["l"])
        assert chat.ask(user(QUESTION), documents=[long], overflow="truncate").report["truncated"] == ["l"]
        dropping = self.front.over(chat.engine, memory=None, overflow="drop")
        assert dropping.text(QUESTION, documents=[long]) == KNOWN
        with pytest.raises(PromptTooLongError):
            chat.memorize([long])

    def test_memorizing_nothing_is_refused(self, chat: Front) -> None:
        with pytest.raises(SettingsError, match="`documents` must hold at least one document to memorize, got none"):
            chat.memorize([])

    def test_documents_in_a_message(self, chat: Front, seen: Seen) -> None:
        block = {"type": "text-plain", "text": PAGE, "id": "p"}
        asked: list[Message] = [{"role": "user", "content": [block, {"type": "text", "text": QUESTION}]}]
        said = chat.ask(asked)
        assert (said.text, said.report["memorized"], seen.messages) == (PAGE, ["p"], [("user", QUESTION)])
        chat.ask(asked, documents=[Document(OTHER, "o"), Document(PAGE, "p")])  # both are in the prompt, each once
        assert seen.documents == [OTHER, PAGE]
        chat.ask([*asked, {"role": "assistant", "content": PAGE}, *user("Who?")])
        assert seen.documents == [PAGE]

    def test_what_a_retriever_of_the_framework_finds_is_memorized(self, chat: Front, seen: Seen) -> None:
        assert chat.retrieve(QUESTION, [PAGE, OTHER]) == PAGE
        assert seen.documents == [PAGE, OTHER]
        assert seen.messages[-1] == ("user", QUESTION)

    def test_a_context_in_a_prompts_text_is_warned_of_once(
        self, chat: Front, plain: Front, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(unmemorized, "_warned", False)
        asked: list[Message] = [{"role": "system", "content": f"Answer from the context:\n\n{LONG}"}, *user(QUESTION)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert plain.ask(asked).text  # memorizing is off, so no warning
            assert chat.ask(asked, documents=[PAGE]).text
        with pytest.warns(UserWarning, match="the prompt seems to hold documents as text, which are read and not mem"):
            chat.ask(asked)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert chat.ask(asked).text
