"""Convert the citations of an answer to LangChain's, in content blocks that can be merged in streams.

The content of an answer with a datastore is one text block: {"type": "text", "text", "annotations": [Citation, ...],
"index": 0}. The chunks of a stream have such blocks too. LangChain merges them because their `index` is equal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.messages.content import Citation
from memograft.chat import citations_of, excerpt, title_of

if TYPE_CHECKING:
    from memograft import Answer

__all__ = ["annotations_of", "content_of", "piece_of"]


def content_of(answer: Answer, text: str, *, rest: str | None = None) -> str | list[str | dict[Any, Any]]:
    """Return a message's content: a string, or with a datastore a block with citations.

    Args:
        answer: the engine's answer.
        text: the part of the answer that is in the message: all of it, or the text beside tool calls.
        rest: for the last chunk of a stream: the end of `text`, which was not streamed yet.
    """
    shown = text if rest is None else rest
    if not (answer.references and text):
        return shown
    (block,) = piece_of(shown)
    return [{**block, "annotations": annotations_of(answer, text)}]  # type: ignore[dict-item]


def piece_of(text: str) -> list[str | dict[Any, Any]]:
    """Return a piece of an answer with a datastore as content."""
    return [{"type": "text", "text": text, "index": 0}]


def annotations_of(answer: Answer, text: str) -> list[Citation]:
    """Return a citation for each part of `text` that comes from one source; `text` is a part of the answer."""
    return [_citation(cited) for cited in citations_of(answer, text)]


def _citation(cited: dict[str, Any]) -> Citation:
    """Return a citation without an id, so that a stream and `invoke` give equal messages."""
    source, stretch = cited["source"], cited["text"]
    url = source["metadata"].get("url") or source["metadata"].get("source")
    citation = Citation(
        type="citation",
        title=title_of(source),
        start_index=cited["start"],
        end_index=cited["end"],
        cited_text=excerpt(source["text"], stretch),
        extras={
            "source_id": source["id"],
            "prompt": excerpt(source["prompt"], ""),
            "probability": cited["probability"],
            "metadata": source["metadata"],
        },
    )
    if isinstance(url, str) and "://" in url:
        citation["url"] = url
    return citation
