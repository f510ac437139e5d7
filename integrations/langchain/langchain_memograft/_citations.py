"""What a datastore's examples did to an answer -> LangChain's citations, in content blocks that streams merge.

An answer that was steered is one text block: {"type": "text", "text", "annotations": [Citation, ...], "index": 0}. Its
pieces are such blocks too, and their equal `index` makes one of them when chunks are added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.messages.content import Citation

if TYPE_CHECKING:
    from memograft import Answer, Source

__all__ = ["annotations_of", "content_of", "piece_of", "references_of"]

_EXCERPT = 300  # characters of a source that are shown


def content_of(answer: Answer, text: str, *, streamed: bool = False) -> str | list[str | dict[Any, Any]]:
    """A message's content: `text` alone, or a block with citations where a datastore was at work.

    Args:
        answer: what the engine said.
        text: what of it is the message's: all of it, or what stands beside calls of tools.
        streamed: the text itself went before.
    """
    if not (answer.references and text):
        return "" if streamed else text
    (block,) = piece_of("" if streamed else text)
    return [{**block, "annotations": annotations_of(answer, text)}]  # type: ignore[dict-item]


def piece_of(text: str) -> list[str | dict[Any, Any]]:
    """A piece of an answer that will have citations."""
    return [{"type": "text", "text": text, "index": 0}]


def annotations_of(answer: Answer, text: str) -> list[Citation]:
    """A citation for each stretch of `text`, which stands in the answer, that goes back to one source."""
    offset = answer.text.rfind(text)  # the last: what a model thought before it may hold it too
    if offset < 0:
        return []
    found = []
    for cited in answer.citations:
        start, end = max(cited.start - offset, 0), min(cited.end - offset, len(text))
        if start < end:
            found.append(_citation(cited.source, start, end, text[start:end], cited.probability))
    return found


def references_of(answer: Answer) -> list[dict[str, Any]]:
    """The sources that moved the answer, by falling probability (summed over its tokens)."""
    return [
        {"id": s.source.id, "probability": s.probability, "metadata": dict(s.source.metadata)} for s in answer.sources
    ]


def _citation(source: Source, start: int, end: int, stretch: str, probability: float) -> Citation:
    """Without an id of its own: the same answer must give the same message, however it came."""
    title, url = source.metadata.get("title"), source.metadata.get("url") or source.metadata.get("source")
    citation = Citation(
        type="citation",
        title=title if isinstance(title, str) and title else source.prompt[:_EXCERPT] or source.id,
        start_index=start,
        end_index=end,
        cited_text=_excerpt(source.text, stretch),
        extras={
            "source_id": source.id,
            "prompt": source.prompt[:_EXCERPT],
            "probability": probability,
            "metadata": dict(source.metadata),
        },
    )
    if isinstance(url, str) and "://" in url:
        citation["url"] = url
    return citation


def _excerpt(text: str, stretch: str) -> str:
    """A source's text or, of a long one, what stands around the stretch."""
    start = min(max(text.find(stretch) - _EXCERPT // 2, 0), max(len(text) - _EXCERPT, 0))
    return text[start : start + _EXCERPT]
