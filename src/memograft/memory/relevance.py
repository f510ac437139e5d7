"""Which documents are about the question, judged by the model itself before anything is memorized.

    relevance(d) = max over sentences s of d:  1 - L(question | s) / L(question)

L is the summed cross-entropy of the question's tokens in nats: with only sentence s of the documents in sight, and with
none; never with what was said before, which may hold the question already. A sentence that names what the question asks
about takes most of its surprise away (1 would be all of it); one about something else takes none, or makes it worse
(below 0). This is the query likelihood of retrieval (Ponte and Croft, 1998), with the model that is about to answer.

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
    tails, losses = _Tails(backbone, filled, rows, prompts), dict[tuple[int, Span], float]()
    for start in range(0, len(shown), size):
        part = shown[start : start + size]
        losses |= zip(part, tails.losses(part).tolist(), strict=True)

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

    def shared(span: Span) -> int:  # longer words say more; with no word in common the first sentences are taken
        return sum(len(word) for word in asked & set(words(prompt, span)))

    return sorted(spans, key=shared, reverse=True)[:_SENTENCES]


def _characters(prompt: Prompt, span: Span) -> Span:
    start, end = span
    return (prompt.offsets[start][0], prompt.offsets[end - 1][1]) if end > start else _NOTHING


class _Tails:
    """What follows the documents of each prompt up to the end of its question, run again behind any part of them.

    All that says what is in sight lies on the CPU until a pass is run: a device map may spread the cache over devices.
    """

    def __init__(self, backbone: Backbone, filled: Prefill, rows: Sequence[int], prompts: Sequence[Prompt]) -> None:
        self._backbone, self._filled, self._prompts = backbone, filled, prompts
        self._rows = torch.tensor(rows)
        self._starts = [max(end for _, end in p.spans) for p in prompts]
        self._lengths = [p.question[1] - 1 - start for p, start in zip(prompts, self._starts, strict=True)]
        shape = (len(prompts), max(self._lengths))
        self._ids, self._new, self._positions = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
        self._columns = [filled.columns(row, range(len(p.ids))).cpu() for row, p in zip(rows, prompts, strict=True)]
        self._seen = filled.mask.cpu()[self._rows, :-1]  # of the cache: what stands before the documents
        for n, (prompt, start, length) in enumerate(zip(prompts, self._starts, self._lengths, strict=True)):
            self._ids[n, :length] = torch.tensor(prompt.ids[start : start + length])
            self._positions[n, :length] = torch.arange(start, start + length)
            self._new[n, :length] = 1
            for first, end in (*prompt.spans, *prompt.history, (start, len(prompt.ids) - 1)):
                self._seen[n, self._columns[n][first:end]] = 0

    def losses(self, shown: Sequence[tuple[int, Span]]) -> Tensor:
        """Nats of each (n, span): of question n with nothing of its documents in sight but this span of the prompt."""
        numbers = [n for n, _ in shown]
        seen = self._seen[numbers]
        for row, (n, (start, end)) in zip(seen, shown, strict=True):
            row[self._columns[n][start:end]] = 1
        width, device = max(self._lengths[n] for n in numbers), self._filled.ids.device
        ids, new, positions = (t[numbers, :width] for t in (self._ids, self._new, self._positions))
        mask = torch.cat([seen, new], 1).to(device)
        x, residual, _ = run(self._backbone, ids.to(device), mask, self._own_cache(numbers), positions.to(device))
        return torch.stack([self._question(n, x[i : i + 1], residual[i : i + 1]) for i, n in enumerate(numbers)])

    def _question(self, n: int, x: Tensor, residual: Tensor) -> Tensor:
        prompt, before = self._prompts[n], self._starts[n] + 1
        start, end = prompt.question
        # The first token of the tail is not predicted by the tail.
        start = max(start, end - _LAST, before)
        part = slice(start - before, end - before)
        logp = torch.log_softmax(self._backbone.logits(x[:, part], residual[:, part]), -1)[0]
        targets = torch.tensor(prompt.ids[start:end], device=logp.device)
        return -logp.gather(-1, targets[:, None]).sum()

    def _own_cache(self, numbers: Sequence[int]) -> Cache:
        """A cache to write to. Its layers never write into a tensor they hold, so `filled` stays as it is."""
        assert self._filled.kv_cache is not None, "a question behind documents has tokens before it"
        cache = copy.copy(self._filled.kv_cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        cache.batch_select_indices(self._rows[numbers])
        return cache
