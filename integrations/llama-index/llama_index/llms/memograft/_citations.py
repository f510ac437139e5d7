"""What an answer was steered by: facts in JSON, and citation blocks beside its text.

A citation block of ours says where in the message's text its stretch is. By that it is known when the message comes
back in a conversation, and read as nothing: other citation blocks are documents.
"""

from __future__ import annotations

from typing import Any

from llama_index.core.base.llms.types import CitationBlock, TextBlock
from llama_index.llms.memograft._documents import json_like
from memograft.request import Answer, Source

__all__ = ["citation_blocks", "is_ours", "references"]

_START, _END = "answer_start", "answer_end"


def references(answer: Answer) -> dict[str, Any]:
    """The sources that moved the answer, and which stretches of `answer.text` go back to which, in JSON.

    Probabilities of sources are summed over the answer's tokens, those of citations are means.
    """
    return {
        "sources": [
            {"id": share.source.id, "prompt": share.source.prompt, **_said(share.source, share.probability)}
            for share in answer.sources
        ],
        "citations": [
            {"start": c.start, "end": c.end, "source": c.source.id, **_said(c.source, c.probability)}
            for c in answer.citations
        ],
    }


def citation_blocks(answer: Answer, content: str) -> list[CitationBlock]:
    """A block for each citation within `content`, which is all of the answer's text or a part of it."""
    first = answer.text.find(content) if content else -1
    if first < 0:
        return []
    return [
        CitationBlock(
            cited_content=TextBlock(text=c.source.text),
            source=c.source.id,
            title=str(c.source.metadata.get("title") or c.source.prompt),
            additional_location_info={_START: c.start - first, _END: c.end - first},
        )
        for c in answer.citations
        if first <= c.start and c.end <= first + len(content)
    ]


def is_ours(block: CitationBlock) -> bool:
    """Whether it says what an answer goes back to, and not what is cited to be read."""
    return block.additional_location_info.keys() == {_START, _END}


def _said(source: Source, probability: float) -> dict[str, Any]:
    return {"text": source.text, "metadata": json_like(source.metadata), "probability": round(probability, 6)}
