"""The statement of each document: its sentence that is most relevant to the question.

The relevance of a sentence is the fraction of the question's cross-entropy that it removes when it is the only part of
the documents that the question attends to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memograft.memory.fastmem.tails import Sight, Tails, before_documents
from memograft.memory.fastmem.wording import NOTHING, nearest
from memograft.model.backbone import Backbone
from memograft.model.kv import Prefill
from memograft.prompt.builder import Prompt, Span

__all__ = ["Statement", "statements"]


@dataclass(frozen=True, order=True)
class Statement:
    """A sentence of a document.

    Attributes:
        relevance: to the question; 1 at most, and 0 if there is nothing to judge.
        span: its tokens, [start, end) in the prompt.
    """

    relevance: float = 0.0
    span: Span = NOTHING


def statements(
    backbone: Backbone, filled: Prefill, row: int, prompt: Prompt, documents: Sequence[int]
) -> list[Statement]:
    """The statement of each of these documents of a prompt, which is in this row of `filled`."""
    start = before_documents(prompt)
    nothing = Sight(0, (start, start), start)
    by_document = [[Sight(0, s, prompt.spans[d][1]) for s in nearest(prompt, prompt.spans[d])] for d in documents]
    sights = [nothing, *(s for own in by_document for s in own)]
    losses = Tails(backbone, filled, [row], [prompt]).losses(sights)
    nats = {sight: float(found.sum()) for sight, found in zip(sights, losses, strict=True)}
    none = nats[nothing]

    def judged(sight: Sight) -> Statement:
        return Statement(1 - nats[sight] / none if none > 0 else 0.0, sight.span)

    return [max((judged(s) for s in own), default=Statement()) for own in by_document]
