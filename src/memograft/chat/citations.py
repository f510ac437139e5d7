"""The influence of a datastore's examples on an answer, as plain data: sources, and citations in the text."""

from __future__ import annotations

from collections.abc import Mapping

from memograft.chat.documents import json_like
from memograft.request import Answer, Citation, Conflict, Source

__all__ = ["citations_of", "excerpt", "references_of", "title_of"]

_EXCERPT = 300  # characters of a source


def references_of(answer: Answer) -> dict[str, object]:
    """The effect of a datastore on an answer: `sources`, `citations` and `conflicts`.

    `sources` are those that contributed, highest probability first, summed over the answer's tokens. `conflicts` are
    the places where a source and a document of the prompt contradict each other: `start`, `end` and `text` of the
    answer's words there, the ids of `source` and `document`, which of the two the answer `follows` ("document" or
    "datastore"), and `otherwise`, the words of the other one.
    """
    sources = [{**_about(share.source), "probability": share.probability} for share in answer.sources]
    conflicts = [
        {
            **_place(conflict, answer.text, 0),
            "source": conflict.source.id,
            "document": conflict.document.id,
            "follows": conflict.follows,
            "otherwise": conflict.otherwise,
        }
        for conflict in answer.conflicts
    ]
    return {"sources": sources, "citations": citations_of(answer, answer.text), "conflicts": conflicts}


def citations_of(answer: Answer, text: str) -> list[dict[str, object]]:
    """A citation for each part of `text` that comes from one source; [] if `text` is not a part of the answer.

    Each has `start` and `end` in characters of `text`, that part as `text`, the mean `probability` that the source
    contributed to its tokens, and the `source`: id, text, prompt and metadata. If the answer follows a document that
    contradicts the source, the document is cited instead, with a probability of None.
    """
    offset = answer.text.rfind(text)  # the last, because reasoning before it may contain it too
    if offset < 0:
        return []
    cited: list[tuple[Citation | Conflict, dict[str, object]]] = [
        (each, {"probability": each.probability, "source": _about(each.source)}) for each in answer.citations
    ]
    followed = {(each.start, each.document.id): each for each in answer.conflicts if each.follows == "document"}
    for each in followed.values():
        document = each.document
        source = Source(document.id, document.text, metadata=document.metadata)
        cited.append((each, {"probability": None, "source": _about(source)}))
    placed = [{**_place(each, text, offset), **about} for each, about in sorted(cited, key=lambda pair: pair[0].start)]
    return [each for each in placed if each["text"]]


def excerpt(text: str, stretch: str) -> str:
    """A source's text, or of a long one 300 characters around the cited part."""
    start = min(max(text.find(stretch) - _EXCERPT // 2, 0), max(len(text) - _EXCERPT, 0))
    return text[start : start + _EXCERPT]


def _place(part: Citation | Conflict, text: str, offset: int) -> dict[str, object]:
    """Where it stands in `text`, which begins at this offset of the answer; an empty text if it stands elsewhere."""
    start = max(part.start - offset, 0)
    end = max(start, min(part.end - offset, len(text)))
    return {"start": start, "end": end, "text": text[start:end]}


def title_of(source: Mapping[str, object]) -> str:
    """What to call the `source` of a citation: its title, else the beginning of its prompt, else its id."""
    metadata = source["metadata"]
    title = metadata.get("title") if isinstance(metadata, Mapping) else None
    if isinstance(title, str) and title:
        return title
    return excerpt(str(source["prompt"]), "") or str(source["id"])


def _about(source: Source) -> dict[str, object]:
    return {"id": source.id, "text": source.text, "prompt": source.prompt, "metadata": json_like(source.metadata)}
