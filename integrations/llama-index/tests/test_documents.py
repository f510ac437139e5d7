"""Documents in all forms, and errors for other values."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    AudioBlock,
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    VideoBlock,
)
from llama_index.core.schema import Document, ImageNode, NodeWithScore, TextNode
from llama_index.llms.memograft import Memograft

from conftest import MEMORIZED, OTHER, PAGE, QUESTION, Seen

NODE = TextNode(text=PAGE, id_="n1", metadata={"file": "a.txt", "n": 3}, excluded_llm_metadata_keys=["n"])


@pytest.mark.parametrize(
    ("item", "id", "text"),
    [
        (Document(text=PAGE, doc_id="d"), "d", PAGE),
        (NODE, "n1", f"file: a.txt\n\n{PAGE}"),
        (NodeWithScore(node=NODE, score=0.3), "n1", f"file: a.txt\n\n{PAGE}"),
    ],
    ids=["Document", "TextNode", "NodeWithScore"],
)
def test_everything_that_is_a_document(llm: Memograft, seen: Seen, item: Any, id: str, text: str) -> None:
    response = llm.complete(QUESTION, documents=[item])
    assert response.additional_kwargs["memograft"]["documents"][-1] == id
    assert "\n\n".join(seen.documents) == text
    assert response.additional_kwargs["memograft"]["memorized"] == [id]
    assert response.text == MEMORIZED


def test_an_image_is_no_document(plain: Memograft) -> None:
    with pytest.raises(ValueError, match=r"documents\[0\] must have text, got an image \(ImageNode i\); Memograft's"):
        plain.complete(QUESTION, documents=[ImageNode(image="AAAA", id_="i")])


def test_metadata_is_shown_and_not_memorized(llm: Memograft, seen: Seen) -> None:
    about = llm.complete(QUESTION, documents=[NODE]).additional_kwargs["memograft"]
    assert seen.documents == ["file: a.txt", PAGE]
    assert (about["documents"], about["memorized"]) == (["n1 metadata", "n1"], ["n1"])
    own = TextNode(text=PAGE, id_="n2", metadata={"file": "a.txt"}, text_template="{content} ({metadata_str})")
    llm.complete(QUESTION, documents=[own])
    assert seen.documents == [f"{PAGE} (file: a.txt)"]


def test_blocks_of_messages_become_documents(llm: Memograft, seen: Seen, tmp_path: Path) -> None:
    file = tmp_path / "page.txt"
    file.write_text(OTHER, encoding="utf-8")
    blocks = [
        CitableBlock(title="Atlas", source="atlas-1", content=[TextBlock(text=PAGE)]),
        DocumentBlock(data=b"Oslo is in Norway.", title="oslo.txt", document_mimetype="text/plain"),
        DocumentBlock(path=str(file)),
        CitationBlock(cited_content="Bergen is too.", source="b", title="B", additional_location_info={}),
        CitableBlock(title="", source="c", content=[DocumentBlock(data=b"In a block.")]),
        TextBlock(text=QUESTION),
    ]
    assert llm.chat([ChatMessage(role="user", blocks=blocks)]).message.content == MEMORIZED
    assert seen.documents == [PAGE, "Oslo is in Norway.", OTHER, "Bergen is too.", "In a block."]
    assert seen.last.documents[0].id == "atlas-1"
    assert seen.last.documents[0].metadata == {"title": "Atlas"}
    assert seen.last.messages[-1]["content"] == QUESTION


def test_blocks_that_say_nothing_to_a_local_model_are_left_out(plain: Memograft, seen: Seen) -> None:
    said = ChatMessage(role="assistant", blocks=[ThinkingBlock(content="Hm."), TextBlock(text="Hello.")])
    asked = ChatMessage(role="user", blocks=[TextBlock(text="Hi."), CachePoint(cache_control={"type": "ephemeral"})])
    plain.chat([asked, said, ChatMessage(role="user", content=QUESTION)])
    assert [m["content"] for m in seen.last.messages] == ["Hi.", "Hello.", QUESTION]


PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJggg=="
)


@pytest.mark.parametrize(
    ("block", "what"),
    [
        (ImageBlock(image=PNG), "an image"),
        (AudioBlock(audio=b"RIFF", format="wav"), "audio"),
        (VideoBlock(video=b"0000", video_mimetype="video/mp4"), "a video"),
        (CitableBlock(title="", source="", content=[ImageBlock(image=PNG)]), "an image"),
    ],
    ids=["image", "audio", "video", "cited image"],
)
def test_pictures_and_sounds_are_refused_by_name(plain: Memograft, block: Any, what: str) -> None:
    message = ChatMessage(role="user", blocks=[TextBlock(text=QUESTION), block])
    match = rf"messages\[1\]\.content\[\d\] is {what} .* a local language model reads text: .*; describe it in words"
    with pytest.raises(ValueError, match=match):
        plain.chat([ChatMessage(role="system", content="Be brief."), message])


@pytest.mark.parametrize(
    ("block", "why"),
    [
        (DocumentBlock(url="https://example.org/a.pdf"), "at https://example.org/a.pdf"),
        (DocumentBlock(data=b"%PDF-1.4 \xff\xfe", title="a.pdf"), "codec can't decode"),
        (DocumentBlock(path="/no/such/file.txt"), "No such file"),
    ],
    ids=["url", "pdf", "missing"],
)
def test_documents_whose_text_is_not_at_hand_are_refused(plain: Memograft, block: Any, why: str) -> None:
    with pytest.raises(ValueError, match=f"must have text .UTF-8., got .*{why}.*; read it with a LlamaIndex reader"):
        plain.chat([ChatMessage(role="user", blocks=[block, TextBlock(text=QUESTION)])])
