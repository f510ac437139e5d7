"""What a datastore's examples did to an answer, as plain data: its sources, and stretches that go back to them."""

from __future__ import annotations

from collections.abc import Mapping

from memograft.chat.documents import json_like
from memograft.request import Answer, Source

__all__ = ["citations_of", "excerpt", "references_of", "title_of"]

_EXCERPT = 300  # characters of a source


def references_of(answer: Answer) -> dict[str, object]:
    """`sources` that moved the answer, by falling probability, summed over its tokens; and its `citations`."""
    sources = [{**_about(share.source), "probability": share.probability} for share in answer.sources]
    return {"sources": sources, "citations": citations_of(answer, answer.text)}


def citations_of(answer: Answer, text: str) -> list[dict[str, object]]:
    """A citation for each stretch of `text` that goes back to one source; none if `text` is no part of the answer.

    Each has `start` and `end` in characters of `text`, the stretch itself as `text`, the mean `probability` that the
    source gave its tokens, and the `source`: id, text, prompt and metadata.
    """
    offset = answer.text.rfind(text)  # the last: what a model thought before it may hold it too
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
    """A source's text or, of a long one, what stands around the stretch; 300 characters at most."""
    start = min(max(text.find(stretch) - _EXCERPT // 2, 0), max(len(text) - _EXCERPT, 0))
    return text[start : start + _EXCERPT]


def title_of(source: Mapping[str, object]) -> str:
    """What to call the `source` of a citation: its title, else the beginning of its prompt, else its id."""
    metadata = source["metadata"]
    title = metadata.get("title") if isinstance(metadata, Mapping) else None
    if isinstance(title, str) and title:
        return title
    return excerpt(str(source["prompt"]), "") or str(source["id"])


def _about(source: Source) -> dict[str, object]:
    return {"id": source.id, "text": source.text, "prompt": source.prompt, "metadata": json_like(source.metadata)}
