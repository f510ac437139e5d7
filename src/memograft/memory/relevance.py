"""Which documents are about the question, judged by the model itself before anything is memorized.

    relevance(d) = max over sentences s of d:  1 - L(question | s) / L(question)

L is the summed cross-entropy of the question's tokens in nats: with only sentence s of the documents in sight, and with
none. A sentence that names what the question asks about takes most of its surprise away (1 would be all of it); one
about something else takes none, or makes it worse (below 0). This is the query likelihood of retrieval (Ponte and
Croft, 1998), with the model that is about to answer.

The documents' keys and values are in the prefill already: what is not meant is masked, and only the question is run.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache

from memograft.backbone import Backbone
from memograft.prefill import Prefill, run
from memograft.prompt import Prompt, Span, token_span

__all__ = ["AUTO", "Statement", "can_judge", "statements", "words"]

AUTO = 0.45  # chosen on the tuning split of tiny's world: see docs/method.md
_LAST = 64  # tokens of the question that are looked at: instructions before it would only dilute it
_SENTENCES = 4  # of a document that are looked at: those that share most with the question's words
_TOKENS = 8192  # of the cache that are copied at a time
_NOTHING = (0, 0)
_SENTENCE = re.compile(r"\S.*?(?:[.!?](?=\s|$)|[\u3002\uff01\uff1f]|\n|$)")  # and the full-width . ! ?
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, order=True)
class Statement:
    """The sentence of a document that is most about the question.

    Attributes:
        relevance: how much; 1 at most, and 0 where there is nothing to judge.
        span: its tokens, [start, end) in the prompt.
    """

    relevance: float = 0.0
    span: Span = _NOTHING


def can_judge(prompt: Prompt) -> bool:
    """Whether the question stands behind the documents, so that they can make it more or less likely."""
    start, end = prompt.question
    return end - start > 1 and any(b > a for a, b in prompt.spans) and start >= max(b for _, b in prompt.spans)


@torch.no_grad()
def statements(
    backbone: Backbone, filled: Prefill, rows: Sequence[int], prompts: Sequence[Prompt]
) -> list[tuple[Statement, ...]]:
    """For each of the prompts, which stand in these rows of `filled`: the statement of each document."""
    sentences = [[_sentences(prompt, span) for span in prompt.spans] for prompt in prompts]
    shown = [
        (n, s) for n, by_document in enumerate(sentences) for s in (_NOTHING, *(s for d in by_document for s in d))
    ]
    size = max(1, _TOKENS // filled.ids.shape[1])
    losses: dict[tuple[int, Span], float] = {}
    for start in range(0, len(shown), size):
        part = shown[start : start + size]
        tail = _Tail(backbone, filled, [rows[n] for n, _ in part], [prompts[n] for n, _ in part])
        losses |= zip(part, tail.loss([span for _, span in part]).tolist(), strict=True)

    def judged(n: int, span: Span) -> Statement:
        none = losses[n, _NOTHING]  # a question that says nothing is made no likelier by anything
        return Statement(1 - losses[n, span] / none if none > 0 else 0.0, span)

    return [
        tuple(max((judged(n, s) for s in own), default=Statement()) for own in by_document)
        for n, by_document in enumerate(sentences)
    ]


def words(prompt: Prompt, span: Span) -> dict[str, Span]:
    """The words of some tokens, in lower case, and the characters where each stands last."""
    return {m.group().casefold(): m.span() for m in _WORD.finditer(prompt.text, *_characters(prompt, span))}


def _sentences(prompt: Prompt, document: Span) -> list[Span]:
    """The sentences of a document that share most with the question, as tokens of the prompt."""
    found = _SENTENCE.finditer(prompt.text, *_characters(prompt, document))
    spans = [token_span(prompt.offsets, m.span()) for m in found]
    asked = set(words(prompt, prompt.question))

    def shared(span: Span) -> int:  # longer words say more, in any language
        return sum(len(word) for word in asked & set(words(prompt, span)))

    return sorted(spans, key=shared, reverse=True)[:_SENTENCES]


def _characters(prompt: Prompt, span: Span) -> Span:
    start, end = span
    return (prompt.offsets[start][0], prompt.offsets[end - 1][1]) if end > start else _NOTHING


class _Tail:
    """What follows the documents up to the end of the question, run again behind any part of them."""

    def __init__(self, backbone: Backbone, filled: Prefill, rows: Sequence[int], prompts: Sequence[Prompt]) -> None:
        self._backbone, self._filled, self._places, self._prompts = backbone, filled, rows, prompts
        self._rows = torch.as_tensor(rows, device=filled.ids.device)
        self._starts = [max(end for _, end in p.spans) for p in prompts]
        lengths = [p.question[1] - 1 - start for p, start in zip(prompts, self._starts, strict=True)]
        shape = (len(prompts), max(lengths))
        ids, new, positions = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
        self._seen = filled.mask[self._rows, :-1].clone()  # of the cache: what stands before the documents
        for n, (prompt, start, length) in enumerate(zip(prompts, self._starts, lengths, strict=True)):
            ids[n, :length] = torch.tensor(prompt.ids[start : start + length])
            positions[n, :length] = torch.arange(start, start + length)
            new[n, :length] = 1
            self._seen[n, filled.columns(rows[n], range(start, len(prompt.ids)))[:-1]] = 0
            for span in prompt.spans:
                self._seen[n, filled.columns(rows[n], range(*span))] = 0
        self._ids, self._new, self._positions = (t.to(filled.ids.device) for t in (ids, new, positions))

    def loss(self, visible: Sequence[Span]) -> Tensor:
        """(B,) nats: of each row's question with nothing of the documents in sight but this span of the prompt."""
        seen = self._seen.clone()
        for n, span in enumerate(visible):
            seen[n, self._filled.columns(self._places[n], range(*span))] = 1
        mask = torch.cat([seen, self._new], 1)
        x, residual, _ = run(self._backbone, self._ids, mask, self._own_cache(), self._positions)
        return torch.stack([self._question(n, x[n : n + 1], residual[n : n + 1]) for n in range(len(x))])

    def _question(self, n: int, x: Tensor, residual: Tensor) -> Tensor:
        prompt, before = self._prompts[n], self._starts[n] + 1
        start, end = prompt.question
        # The first token of the tail is not predicted by the tail.
        start = max(start, end - _LAST, before)
        part = slice(start - before, end - before)
        logp = torch.log_softmax(self._backbone.logits(x[:, part], residual[:, part]), -1)[0]
        targets = torch.tensor(prompt.ids[start:end], device=logp.device)
        return -logp.gather(-1, targets[:, None]).sum()

    def _own_cache(self) -> Cache | None:
        """A cache to write to. Its layers never write into a tensor they hold, so `filled` stays as it is."""
        if self._filled.kv_cache is None:
            return None
        cache = copy.copy(self._filled.kv_cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        cache.batch_select_indices(self._rows)
        return cache
