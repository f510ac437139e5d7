"""Which relevant documents contradict each other in what the question asks for.

Two documents disagree if their statements (see `statements`) are about the question alike, and each holds a word that
the other document does not, that the question does not, and that the model did not expect where it stands: another
name, another number, not another way to put it. Knows nothing of what is true.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from memograft.backbone import Backbone
from memograft.memory.objective import exact_losses
from memograft.memory.rows import context_rows
from memograft.memory.statements import Statement
from memograft.memory.wording import words
from memograft.prefill import Prefill
from memograft.prompt import Prompt, Span, token_span

__all__ = ["disagreements"]

# Chosen on the tuning split of tiny's world: see docs/method.md.
ALIKE = 0.8  # of two statements' relevances, the smaller over the larger
SURPRISE = 5.0  # nats of a word that the model did not expect


@dataclass(frozen=True)
class _Said:
    """What a document says to the question.

    Attributes:
        relevance: of its statement.
        nats: of each word of its statement.
        document: all words of the document.
    """

    relevance: float
    nats: dict[str, float]
    document: set[str]


def disagreements(
    backbone: Backbone, filled: Prefill, row: int, prompt: Prompt, stated: Sequence[Statement]
) -> list[tuple[int, int]]:
    """Pairs of the prompt's documents that disagree, by their numbers, the lower first; `stated` are their statements.

    The prompt stands in this row of `filled`. No adapter may be active: the surprise is the base model's.
    """
    marked = replace(prompt, spans=tuple(s.span for s in stated))
    losses = exact_losses(backbone, context_rows(filled, row, marked))[0]
    nats: dict[int, float] = dict(zip(marked.context, losses.tolist(), strict=True))

    def of_word(place: Span) -> float:
        return sum((nats.get(t, 0.0) for t in range(*token_span(prompt.offsets, place))), 0.0)

    said = [
        _Said(s.relevance, {w: of_word(place) for w, place in words(prompt, s.span).items()}, set(words(prompt, span)))
        for s, span in zip(stated, prompt.spans, strict=True)
    ]
    asked = set(words(prompt, prompt.question))
    return [(a, b) for a, b in combinations(range(len(said)), 2) if _disagree(said[a], said[b], asked)]


def _disagree(a: _Said, b: _Said, asked: set[str]) -> bool:
    low, high = sorted((a.relevance, b.relevance))
    alike = low > 0 and low >= ALIKE * high
    return alike and _news(a, b, asked) >= SURPRISE and _news(b, a, asked) >= SURPRISE


def _news(said: _Said, other: _Said, asked: set[str]) -> float:
    """Nats of the least expected word that neither the other document nor the question holds."""
    return max((nats for word, nats in said.nats.items() if word not in other.document | asked), default=0.0)
