"""What a datastore's examples did to an answer -> LangChain's citations, in content blocks that streams merge.

An answer that was steered is one text block: {"type": "text", "text", "annotations": [Citation, ...], "index": 0}. Its
pieces are such blocks too, and their equal `index` makes one of them when chunks are added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.messages.content import Citation
from memograft.chat import citations_of, excerpt, title_of

if TYPE_CHECKING:
    from memograft import Answer

__all__ = ["annotations_of", "content_of", "piece_of"]


def content_of(answer: Answer, text: str, *, rest: str | None = None) -> str | list[str | dict[Any, Any]]:
    """Return a message's content: text alone, or a block with citations where a datastore was used.

    Args:
        answer: the engine's.
        text: the part of it that belongs to the message: all, or the text beside calls of tools.
        rest: of the last chunk of a stream: the end of `text` that no chunk before it has.
    """
    shown = text if rest is None else rest
    if not (answer.references and text):
        return shown
    (block,) = piece_of(shown)
    return [{**block, "annotations": annotations_of(answer, text)}]  # type: ignore[dict-item]


def piece_of(text: str) -> list[str | dict[Any, Any]]:
    """Return a piece of an answer that will have citations."""
    return [{"type": "text", "text": text, "index": 0}]


def annotations_of(answer: Answer, text: str) -> list[Citation]:
    """Return a citation for each stretch of `text`, a part of the answer, that goes back to one source."""
    return [_citation(cited) for cited in citations_of(answer, text)]


def _citation(cited: dict[str, Any]) -> Citation:
    """Return it without an id of its own: equal answers give equal messages, streamed or not."""
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
