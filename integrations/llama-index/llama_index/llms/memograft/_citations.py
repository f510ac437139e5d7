"""Citation blocks for the parts of an answer's text that come from sources of a datastore.

Such a block has the place of its part in the message's text. By that it is recognized when the message is in a later
conversation, where it is ignored. Other citation blocks are documents.
"""

from __future__ import annotations

from typing import Any

from llama_index.core.base.llms.types import CitationBlock, TextBlock
from memograft import Answer
from memograft.chat import citations_of, excerpt, title_of

__all__ = ["citation_blocks", "is_ours"]

_START, _END = "answer_start", "answer_end"


def citation_blocks(answer: Answer, content: str) -> list[CitationBlock]:
    """A block for each citation in `content`, which is all of the answer's text or a part of it.

    As in LangChain, `cited_content` is the source's text, or of a long one the part around the cited words.
    """
    blocks = []
    found: list[dict[str, Any]] = citations_of(answer, content)
    for cited in found:
        source = cited["source"]
        blocks.append(
            CitationBlock(
                cited_content=TextBlock(text=excerpt(source["text"], cited["text"])),
                source=source["id"],
                title=title_of(source),
                additional_location_info={_START: cited["start"], _END: cited["end"]},
            )
        )
    return blocks


def is_ours(block: CitationBlock) -> bool:
    """Whether the block was made by `citation_blocks`, and so is not a document."""
    return block.additional_location_info.keys() == {_START, _END}
