"""Find relevant documents that contradict each other about the question.

Sentences of two documents are compared if they are rivals, which means one of two things:
- both are their document's statement (see `statements`) and are about equally relevant to the question, or
- they are twins: identical except for one run of words.

Rivals contradict each other if each has a word that neither the other document nor the question has, such as another
name or number, and the base model did not expect these words (otherwise they may be a paraphrase). Of statements both
words must be unexpected, of twins one. Which document is right is not decided.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import combinations, product

from memograft.memory.fastmem.rows import context_rows
from memograft.memory.fastmem.statements import Statement
from memograft.memory.fastmem.vocabulary import exact_losses
from memograft.memory.fastmem.wording import places, sentences, words
from memograft.model.backbone import Backbone
from memograft.model.kv import Prefill
from memograft.prompt.builder import Prompt, Span, token_span

__all__ = ["disagreements"]

# Chosen on the tuning splits of tiny's world, NQ-SWAP and SQuAD: see docs/method.md.
ABOUT = 0.5  # least relevance of a statement: below it, two pages may describe different things of one kind
ALIKE = 0.8  # least ratio of the smaller to the larger relevance of two statements
SAME = 0.5  # twins share more than this fraction of their words
SURPRISE = 5.0  # nats from which a word counts as unexpected


@dataclass(frozen=True)
class _Rivals:
    """Two sentences, of documents a and b, that may contradict each other."""

    a: int
    b: int
    spans: tuple[Span, Span]
    twins: bool


def disagreements(
    backbone: Backbone, filled: Prefill, row: int, prompt: Prompt, stated: Sequence[Statement]
) -> list[tuple[int, int]]:
    """Pairs of the prompt's documents that disagree, as indices, the lower first.

    `stated` are the documents' statements, and the prompt is in this row of `filled`. No adapter may be active, because
    the surprise is the base model's.
    """
    rivals = [*_alike(stated), *_twins(prompt)]
    if not rivals:
        return []
    marked = replace(prompt, spans=tuple(span for r in rivals for span in r.spans))
    losses = exact_losses(backbone, context_rows(filled, row, marked))
    nats: dict[int, float] = dict(zip(marked.context, losses.tolist(), strict=True))
    held = [set(words(prompt, span)) for span in prompt.spans]
    asked = set(words(prompt, prompt.question))

    def news(span: Span, other: int) -> float:
        """Nats of the least expected word that is in neither the other document nor the question."""
        new = (place for word, place in places(prompt, span) if word not in held[other] | asked)
        return max((sum(nats.get(t, 0.0) for t in range(*token_span(prompt.offsets, p))) for p in new), default=0.0)

    def disagree(rivals: _Rivals) -> bool:
        low, high = sorted((news(rivals.spans[0], rivals.b), news(rivals.spans[1], rivals.a)))
        return low > 0 and (high if rivals.twins else low) >= SURPRISE

    return sorted({(r.a, r.b) for r in rivals if disagree(r)})


def _alike(stated: Sequence[Statement]) -> Iterator[_Rivals]:
    for (a, one), (b, other) in combinations(enumerate(stated), 2):
        low, high = sorted((one.relevance, other.relevance))
        if low >= max(ABOUT, ALIKE * high):
            yield _Rivals(a, b, (one.span, other.span), twins=False)


def _twins(prompt: Prompt) -> Iterator[_Rivals]:
    said = [[([w for w, _ in places(prompt, s)], s) for s in sentences(prompt, span)] for span in prompt.spans]
    for a, b in combinations(range(len(said)), 2):
        for (one, first), (other, second) in product(said[a], said[b]):
            if _are_twins(one, other):
                yield _Rivals(a, b, (first, second), twins=True)


def _are_twins(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two sentences differ only by replacing one run of words by another, in one or more places."""
    if (Counter(one) & Counter(other)).total() <= SAME * max(len(one), len(other)):
        return False
    matched = SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    changes = {(*one[i:j], None, *other[k:m]) for tag, i, j, k, m in matched if tag != "equal"}
    return len(changes) == 1 and None not in (next(iter(changes))[0], next(iter(changes))[-1])
