"""Examples for `build_datastore`: nodes, histories, pairs and triples, and errors for other values."""

from __future__ import annotations

from typing import Any

import pytest
from blockbuster import blockbuster_ctx
from llama_index.core.base.llms.types import (
    AudioBlock,
    ChatMessage,
    CitableBlock,
    DocumentBlock,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.schema import Document, ImageNode, NodeWithScore, QueryBundle, TextNode
from llama_index.llms.memograft import Memograft
from llama_index.llms.memograft._examples import to_examples
from memograft import Document as Page
from memograft import Rtd
from memograft.errors import SettingsError
from memograft.rtd.examples import as_example

from conftest import ASKED, OTHER, PAGE, QUESTION, TAUGHT

HISTORY = [
    ChatMessage(role="system", content="Be brief."),
    ChatMessage(role="user", blocks=[CitableBlock(title="", source="page", content=PAGE), TextBlock(text=QUESTION)]),
    ChatMessage(role="assistant", content="Lisbon."),
    ChatMessage(role="user", blocks=[DocumentBlock(data=OTHER.encode()), TextBlock(text=ASKED)]),
    ChatMessage(role="assistant", content=TAUGHT),
]


def read(example: Any) -> tuple[Any, ...]:
    """The source, messages and documents of an example as the core reads it."""
    found = as_example(example, 0)
    return found.source, found.messages, [document.text for document in found.documents]


NODE = TextNode(text=PAGE, id_="n", metadata={"file": "a.txt"})


@pytest.mark.parametrize(
    ("item", "core"),
    [
        (NODE, {"text": PAGE, "id": "n", "metadata": {"file": "a.txt"}}),
        (NodeWithScore(node=NODE, score=0.2), {"text": PAGE, "id": "n", "metadata": {"file": "a.txt"}}),
        (Document(text=PAGE, doc_id="d"), {"text": PAGE, "id": "d"}),
        ((HISTORY[1:2], "Lisbon."), ([Page(PAGE, "page")], QUESTION, "Lisbon.")),
        (([NodeWithScore(node=NODE)], ASKED, TAUGHT), ([Page("file: a.txt"), Page(PAGE, "n")], ASKED, TAUGHT)),
    ],
)
def test_everything_that_is_an_example(item: Any, core: Any) -> None:
    (example,) = to_examples([item])
    assert read(example) == read(core)


def test_turns_without_text_and_neighbours_in_a_history() -> None:
    call = ToolCallBlock(tool_call_id="1", tool_name="look", tool_kwargs={"at": "map"})
    history = [
        ChatMessage(role="assistant", content="Good day."),  # which answers nothing
        ChatMessage(role="user", content="Where?"),
        ChatMessage(role="assistant", blocks=[call]),
        ChatMessage(role="tool", content="Oslo", additional_kwargs={"tool_call_id": "1"}),
        ChatMessage(role="assistant", content="In Oslo."),
        ChatMessage(role="assistant", content="It is in Norway."),
    ]
    (example,) = to_examples([tuple(history)], takes_tools=True)
    assert example["answer"] == "In Oslo.\n\nIt is in Norway."
    assert [m["role"] for m in example["messages"]] == ["assistant", "user", "assistant", "tool"]


def test_what_an_answer_cites_is_no_document(steered: Memograft) -> None:
    said = steered.chat([ChatMessage(content=ASKED)]).message
    assert len(said.blocks) == 2
    history = [
        ChatMessage(content=ASKED),
        said,
        ChatMessage(content="Sure?"),
        ChatMessage(role="assistant", content="Yes."),
    ]
    first, second = to_examples([history])
    assert (first["answer"], second["answer"]) == (TAUGHT, "Yes.")
    assert first["documents"] == second["documents"] == ()


WRONG: list[tuple[Any, str]] = [
    (
        QueryBundle(ASKED),
        "must be a node, a Document, a list of ChatMessages, .* got QueryBundle; a conversation is one",
    ),
    (
        ChatMemoryBuffer.from_defaults(HISTORY, token_limit=99, tokenizer_fn=list),
        "got ChatMemoryBuffer; a conversation",
    ),
    (ImageNode(image="AAAA", id_="i"), r"examples\[1\]: it must have text, got an image \(ImageNode i\)"),
    (
        [ChatMessage(role="user", blocks=[AudioBlock(audio=b"RIFF", format="wav")]), HISTORY[2]],
        r"examples\[1\]: messages\[0\]\.content\[0\] is audio .* describe it in words",
    ),
]


@pytest.mark.parametrize(("item", "match"), WRONG)
def test_what_is_no_example_is_said_before_anything_is_done(item: Any, match: str) -> None:
    llm = Memograft(model="no such model")  # which is not even loaded
    with pytest.raises(SettingsError, match=match):
        llm.build_datastore([(ASKED, TAUGHT), item])


async def test_building_does_not_block_the_loop(plain: Memograft) -> None:
    plain.build_datastore([NODE], progress=False).close()  # the first one imports faiss
    with blockbuster_ctx():
        store = await plain.abuild_datastore([NODE, (ASKED, TAUGHT)], place="head_input", progress=False)
        response = await plain.acomplete(ASKED, datastore=Rtd(store, weight=0.9))
    assert response.additional_kwargs["memograft"]["references"]["sources"]
    assert store.header.place == "head_input"
    store.close()
