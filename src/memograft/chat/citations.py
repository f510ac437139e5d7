"""The influence of a datastore's examples on an answer, as plain data: sources, and citations in the text."""

from __future__ import annotations

from memograft.chat.documents import json_like
from memograft.request import Answer, Source

__all__ = ["citations_of", "excerpt", "references_of"]

_EXCERPT = 300  # characters of a source


def references_of(answer: Answer) -> dict[str, object]:
    """`sources` that contributed to the answer, highest probability first, summed over its tokens; and `citations`."""
    sources = [{**_about(share.source), "probability": share.probability} for share in answer.sources]
    return {"sources": sources, "citations": citations_of(answer, answer.text)}


def citations_of(answer: Answer, text: str) -> list[dict[str, object]]:
    """A citation for each part of `text` that comes from one source; [] if `text` is not a part of the answer.

    Each has `start` and `end` in characters of `text`, that part as `text`, the mean `probability` that the source
    contributed to its tokens, and the `source`: id, text, prompt and metadata.
    """
    offset = answer.text.rfind(text)  # the last, because reasoning before it may contain it too
    if offset < 0:
        return []
    found: list[dict[str, object]] = []
    for cited in answer.citations:
        start, end = max(cited.start - offset, 0), min(cited.end - offset, len(text))
        if start < end:
            about = {"start": start, "end": end, "text": text[start:end], "probability": cited.probability}
            found.append({**about, "source": _about(cited.source)})
    return found


def excerpt(text: str, stretch: str) -> str:
    """A source's text, or of a long one 300 characters around the cited part."""
    start = min(max(text.find(stretch) - _EXCERPT // 2, 0), max(len(text) - _EXCERPT, 0))
    return text[start : start + _EXCERPT]


def _about(source: Source) -> dict[str, object]:
    return {"id": source.id, "text": source.text, "prompt": source.prompt, "metadata": json_like(source.metadata)}
