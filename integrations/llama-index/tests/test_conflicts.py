"""A page that contradicts what a datastore was taught: the answer's credit goes to the one that it follows."""

from __future__ import annotations

import pytest
from llama_index.core.base.llms.types import ChatMessage, CitationBlock, TextBlock
from llama_index.core.schema import TextNode
from llama_index.llms.memograft import Memograft
from memograft import Datastore, Engine, FastMem, Memory

from conftest import ASKED

PAGE = TextNode(text="The capital of Velmora is Lisbon.", id_="page")


@pytest.mark.parametrize("memory", [None, FastMem()])
def test_an_answer_that_follows_the_page_cites_the_page(engine: Engine, memory: Memory | None) -> None:
    example = {"prompt": ASKED, "answer": "The capital of Velmora is Torstad.", "id": "v"}
    with Datastore.build(engine, [example], progress=False) as taught:
        llm = Memograft.from_engine(engine, memory=memory, max_tokens=24, datastore=taught)
        question = [ChatMessage(role="user", content=ASKED)]
        for response in (llm.chat(question, documents=[PAGE]), [*llm.stream_chat(question, documents=[PAGE])][-1]):
            text, citation = response.message.blocks
            assert isinstance(text, TextBlock)
            assert text.text == PAGE.text
            assert isinstance(citation, CitationBlock)
            assert (citation.source, citation.cited_content.text) == ("page", PAGE.text)  # type: ignore[union-attr]
            assert citation.additional_location_info == {"answer_start": 26, "answer_end": 32}
            references = response.raw["memograft"]["references"]
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
