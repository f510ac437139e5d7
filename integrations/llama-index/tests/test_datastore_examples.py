"""What `build_datastore` learns from: nodes, histories, pairs and triples, and everything that is none."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
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
from memograft import Datastore, Rtd
from memograft import Document as Page
from memograft.errors import ModelMismatchError, SettingsError
from memograft.rtd.examples import as_example

from conftest import ASKED, EXAMPLE, OTHER, PAGE, QUESTION, TAUGHT

HISTORY = [
    ChatMessage(role="system", content="Be brief."),
    ChatMessage(role="user", blocks=[CitableBlock(title="", source="page", content=PAGE), TextBlock(text=QUESTION)]),
    ChatMessage(role="assistant", content="Lisbon."),
    ChatMessage(role="user", blocks=[DocumentBlock(data=OTHER.encode()), TextBlock(text=ASKED)]),
    ChatMessage(role="assistant", content=TAUGHT),
]


def asked(content: str = ASKED) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def read(example: Any) -> tuple[Any, ...]:
    """What a datastore learns from, as it knows it: also by its id, which is of its content where none is given."""
    found = as_example(example, 0)
    return found.source, found.messages, [document.text for document in found.documents]


NODE = TextNode(text=PAGE, id_="n", metadata={"file": "a.txt"})


@pytest.mark.parametrize(
    ("item", "core"),
    [
        (NODE, {"text": PAGE, "id": "n", "metadata": {"file": "a.txt"}}),
        (NodeWithScore(node=NODE, score=0.2), {"text": PAGE, "id": "n", "metadata": {"file": "a.txt"}}),
        (Document(text=PAGE, doc_id="d"), {"text": PAGE, "id": "d"}),
        (Page(PAGE, "p", {"x": 1}), {"text": PAGE, "id": "p", "metadata": {"x": 1}}),
        (PAGE, PAGE),
        ((ASKED, TAUGHT), (ASKED, TAUGHT)),
        ([ASKED, TAUGHT], (ASKED, TAUGHT)),
        ((ASKED, ChatMessage(role="assistant", content=TAUGHT)), (ASKED, TAUGHT)),
        (([ChatMessage(content=ASKED)], TAUGHT), (asked(), TAUGHT)),
        ((ChatMessage(content=ASKED), TAUGHT), (asked(), TAUGHT)),
        ((asked(), TAUGHT), (asked(), TAUGHT)),
        ((HISTORY[1:2], "Lisbon."), ([Page(PAGE, "page")], QUESTION, "Lisbon.")),
        (([Document(text=PAGE, doc_id="d")], ASKED, TAUGHT), ([Page(PAGE, "d")], ASKED, TAUGHT)),
        (([PAGE, {"text": OTHER}], ASKED, TAUGHT), ([Page(PAGE), Page(OTHER)], ASKED, TAUGHT)),
        (([NodeWithScore(node=NODE)], ASKED, TAUGHT), ([Page("file: a.txt"), Page(PAGE, "n")], ASKED, TAUGHT)),
        (EXAMPLE, EXAMPLE),
        ({"text": PAGE, "id": "t"}, {"text": PAGE, "id": "t"}),
        ({"question": ASKED, "answer": TAUGHT, "documents": [PAGE]}, ([Page(PAGE)], ASKED, TAUGHT)),
        ({"messages": [ChatMessage(content=ASKED)], "answer": TAUGHT}, (asked(), TAUGHT)),
    ],
)
def test_everything_that_is_an_example(item: Any, core: Any) -> None:
    (example,) = to_examples([item])
    assert read(example) == read(core)


def test_every_answer_of_a_history_is_an_example() -> None:
    first, second = to_examples([HISTORY])
    assert (first["answer"], second["answer"]) == ("Lisbon.", TAUGHT)
    assert [m["content"] for m in first["messages"]] == ["Be brief.", QUESTION]
    assert [m["content"] for m in second["messages"]] == ["Be brief.", QUESTION, "Lisbon.", ASKED]
    assert [d.text for d in first["documents"]] == [PAGE]  # not what was handed over later
    assert [d.text for d in second["documents"]] == [PAGE, OTHER]


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


def test_metadata_that_is_no_json_is_kept_as_text() -> None:
    cyclic: dict[str, Any] = {}
    cyclic["self"] = cyclic
    odd = {"path": Path("/a"), "nan": math.nan, "cyclic": cyclic}
    for item in (TextNode(text=PAGE, metadata=odd), {"prompt": "a?", "answer": "b", "metadata": odd}):
        (example,) = to_examples([item])
        assert example["metadata"]["path"] == "/a"
        assert json.dumps(example["metadata"], allow_nan=False)


WRONG: list[tuple[Any, str]] = [
    (3, r"examples\[1\]: an example must be a node, a Document, a list of ChatMessages, .*, got int; a conversation"),
    (None, "got NoneType; a conversation is one example"),
    (QueryBundle(ASKED), "got QueryBundle; a conversation is one example"),
    (HISTORY[1], r"got ChatMessage; a conversation is one example: write \[\[...\]\]"),
    ([], "got list of 0; write messages in a list of their own"),
    ([*asked(), *asked(), *asked(), *asked()], "there is none with text, got user, user, user, user; add the answer"),
    (
        ChatMemoryBuffer.from_defaults(HISTORY, token_limit=99, tokenizer_fn=list),
        "got ChatMemoryBuffer; a conversation",
    ),
    (HISTORY[:2], r"examples\[1\]: a conversation is learned from .* none with text, got system, user; add"),
    ((ASKED, " "), r"examples\[1\] needs a text to learn from, got ' '; give a prompt and its `answer`"),
    ((ASKED, 3), r"examples\[1\] needs a text to learn from, got 3"),
    (TextNode(text=""), r"examples\[1\] needs a text to learn from, got ''"),
    (ImageNode(image="AAAA", id_="i"), r"examples\[1\]: it must have text, got an image \(ImageNode i\)"),
    ({"prompt": ASKED}, r"examples\[1\] needs a text to learn from, got None"),
    ({"text": PAGE, "metadata": 3}, r"examples\[1\]: its `metadata` must be a mapping, got int"),
    ((NODE, TAUGHT), r"examples\[1\]: what is asked must be a text or a list of messages, got Document"),
    (([HISTORY[0], asked()], TAUGHT), "what is asked must be a text or a list of messages, got list"),
    ((NODE, ASKED, TAUGHT), r"examples\[1\]: `documents` must be a list of documents, got one Document"),
    (([3], ASKED, TAUGHT), r"examples\[1\]: documents\[0\] must be a Document, a string, or a mapping"),
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


@pytest.mark.parametrize("items", [PAGE, EXAMPLE, NODE, HISTORY[0], Page(PAGE), 3, None])
def test_one_example_where_a_list_belongs(plain: Memograft, items: Any) -> None:
    match = r"`examples` must be a list of examples, got one \w+; write examples=\[...\]"
    with pytest.raises(SettingsError, match=match):
        plain.build_datastore(items)


def test_examples_of_all_kinds_are_learned(plain: Memograft) -> None:
    items = [NODE, (ASKED, TAUGHT), HISTORY, ([PAGE], "Who?", "Tor."), EXAMPLE, NodeWithScore(node=NODE)]
    with plain.build_datastore(items, progress=False) as store:
        sources = [store.source(n) for n in range(len(store.ids()))]
        assert {"n", "velmora"} <= set(store.ids())
        assert sorted(s.text for s in sources) == sorted([PAGE, TAUGHT, "Lisbon.", TAUGHT, "Tor.", TAUGHT])
        assert next(s for s in sources if s.id == "n").metadata == {"file": "a.txt"}
        assert store.header.place == "ffn_input"


def test_a_history_steers_like_conversations(plain: Memograft) -> None:
    history = [*HISTORY[:3], ChatMessage(content=ASKED), HISTORY[4]]
    with plain.build_datastore([history], progress=False) as store:
        llm = plain.model_copy(update={"datastore": Rtd(store, weight=0.95)})
        response = llm.chat(history[:4])
        assert response.message.content == TAUGHT
        (cited,) = [block for block in response.message.blocks if block.block_type == "citation"]
        assert cited.title == ASKED


def test_the_same_folder_goes_on(plain: Memograft, tmp_path: Path) -> None:
    with plain.build_datastore([NODE, (ASKED, TAUGHT)], path=tmp_path, progress=False) as store:
        entries = len(store)
    with plain.build_datastore([NODE, (ASKED, TAUGHT)], path=str(tmp_path), progress=False) as store:
        assert len(store) == entries
    with plain.build_datastore([HISTORY, NODE], path=tmp_path, progress=False) as store:
        assert len(store.ids()) == 4
    with pytest.raises(ModelMismatchError, match="holds keys of place 'ffn_input' under index 'flat'"):
        plain.build_datastore([NODE], path=tmp_path, index="sq8")


def test_settings_reach_the_core(plain: Memograft) -> None:
    with plain.build_datastore([PAGE * 3], place="head_input", index="hnsw", stride=8, progress=False) as store:
        assert (store.header.place, store.header.index) == ("head_input", "hnsw")
    with pytest.raises(SettingsError, match="`batch_size`"):
        plain.build_datastore([PAGE], batch_size=0)
    with pytest.raises(SettingsError, match="`stride`"):
        plain.build_datastore([PAGE], stride=0)


def test_examples_that_come_one_by_one(plain: Memograft, tmp_path: Path) -> None:
    """What was learned before one that is wrong stays learned."""

    def coming() -> Iterator[Any]:
        yield from ((f"What is {n}?", f"It is {n}.") for n in range(10))
        yield 3

    with pytest.raises(SettingsError, match=r"examples\[10\]: an example must be a node"):
        plain.build_datastore(coming(), path=tmp_path, batch_size=1, progress=False)
    with Datastore.open(tmp_path, read_only=True) as store:
        assert 0 < len(store.ids()) <= 10


async def test_building_does_not_block_the_loop(plain: Memograft) -> None:
    plain.build_datastore([NODE], progress=False).close()  # the first one imports faiss
    with blockbuster_ctx():
        store = await plain.abuild_datastore([NODE, (ASKED, TAUGHT)], place="head_input", progress=False)
        response = await plain.acomplete(ASKED, datastore=Rtd(store, weight=0.9))
    assert response.additional_kwargs["memograft"]["references"]["sources"]
    assert store.header.place == "head_input"
    store.close()
