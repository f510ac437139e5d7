"""A page that contradicts what a datastore was taught: the answer's credit goes to the one that it follows."""

from __future__ import annotations

from conformance.pages import TORSTAD, VELMORA
from langchain_core.documents import Document

from langchain_memograft import ChatMemograft
from taught import built

PAGE = Document("The capital of Velmora is Lisbon.", id="page", metadata={"title": "Atlas", "source": "https://a.b/c"})


def test_an_answer_that_follows_the_page_cites_the_page() -> None:
    taught = built([{"prompt": VELMORA, "answer": "The capital of Velmora is Torstad.", "id": "v"}])
    for memory in (None, "fastmem"):
        chat = ChatMemograft(model="tiny", max_tokens=24, datastore=taught, memory=memory)
        answer = chat.invoke(VELMORA, documents=[PAGE])
        assert answer.text == PAGE.page_content
        (citation,) = answer.content_blocks[0]["annotations"]  # type: ignore[typeddict-item]
        assert answer.text[citation["start_index"] : citation["end_index"]] == "Lisbon"
        assert (citation["title"], citation["url"], citation["cited_text"]) == ("Atlas", "https://a.b/c", answer.text)
        assert (citation["extras"]["source_id"], citation["extras"]["probability"]) == ("page", None)
        references = answer.response_metadata["memograft"]["references"]
        assert references["sources"][0]["id"] == "v"  # it made the words before likelier
        assert references["conflicts"] == [
            {
                "start": 26,
                "end": 32,
                "text": "Lisbon",
                "source": "v",
                "document": "page",
                "follows": "document",
                "otherwise": "Torstad",
            }
        ]
        (last,) = [chunk for chunk in chat.stream(VELMORA, documents=[PAGE]) if chunk.chunk_position == "last"]
        assert last.content[0]["annotations"] == [citation]  # type: ignore[index]
        assert TORSTAD not in answer.text
