"""Run the questions of prompts again, each attending to only some part of the documents; the rest is masked.

The keys and values of the documents are taken from the prefill, so only the tokens after the documents are run. Earlier
turns are always masked, because they may have the question in them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache

from memograft.model.backbone import Backbone
from memograft.model.kv import Prefill
from memograft.model.prefill import run
from memograft.prompt.builder import Prompt, Span

__all__ = ["Sight", "Tails", "before_documents", "last_of"]

_LAST = 64  # tokens of the question, counted from its end, whose losses are used: earlier ones dilute the measure
_TOKENS = 8192  # cache tokens copied at a time


@dataclass(frozen=True)
class Sight:
    """What a question attends to.

    Attributes:
        prompt: index of its prompt.
        span: tokens of the documents that are visible; all others are masked.
        end: position of the first token after the documents.
        lead: tokens inserted between the documents and the tail.
    """

    prompt: int
    span: Span
    end: int
    lead: tuple[int, ...] = ()


class Tails:
    """The tail of each prompt: the tokens after its documents, up to the end of its question.

    Args:
        backbone: the model.
        filled: the prefilled prompts; it is not changed.
        rows: row of each prompt in `filled`.
        prompts: prompts whose question comes after their documents.
        parts: tokens of each prompt's question whose losses are needed, if these are more than its last 64.
    """

    def __init__(
        self,
        backbone: Backbone,
        filled: Prefill,
        rows: Sequence[int],
        prompts: Sequence[Prompt],
        parts: Sequence[Span | None] = (),
    ) -> None:
        self._backbone, self._filled, self._prompts = backbone, filled, prompts
        looked_at = [
            part or prompt.question for prompt, part in zip(prompts, parts or [None] * len(prompts), strict=True)
        ]
        self._firsts = [last_of(part)[0] for part in looked_at]
        self._rows = torch.tensor(rows)
        self._starts = [max(end for _, end in (*p.spans, *p.history)) for p in prompts]
        self._columns = [filled.columns(row, range(len(p.ids))).cpu() for row, p in zip(rows, prompts, strict=True)]
        # These tensors stay on the CPU until a pass runs, because a device map may spread the cache over devices.
        self._seen = filled.mask.cpu()[self._rows, :-1]  # over the cache; True only before the documents, see below
        for seen, columns, prompt in zip(self._seen, self._columns, prompts, strict=True):
            # Text between documents is masked as well: its keys and values were computed with documents visible.
            for first, end in ((before_documents(prompt), len(prompt.ids) - 1), *prompt.history):
                seen[columns[first:end]] = 0

    def losses(self, sights: Sequence[Sight]) -> list[Tensor]:
        """Losses in nats of the question's last 64 tokens, or from the start of its part, for each sight."""
        size = max(1, _TOKENS // self._filled.ids.shape[1])
        parts = (self._losses(sights[start : start + size]) for start in range(0, len(sights), size))
        return [losses for part in parts for losses in part]

    @torch.no_grad()
    def _losses(self, sights: Sequence[Sight]) -> list[Tensor]:
        numbers = [s.prompt for s in sights]
        seen = self._seen[numbers]
        for row, sight in zip(seen, sights, strict=True):
            row[self._columns[sight.prompt][slice(*sight.span)]] = 1
        tails = [torch.tensor([*s.lead, *self._tail(s.prompt)]) for s in sights]
        ids, new = pad_sequence(tails, True), pad_sequence([torch.ones_like(t) for t in tails], True)
        # Padding gets position 0, because counting on could exceed the model's largest position.
        positions = pad_sequence([s.end + torch.arange(len(t)) for s, t in zip(sights, tails, strict=True)], True)
        device = self._filled.ids.device
        mask = torch.cat([seen, new], 1).to(device)
        x, residual, _ = run(self._backbone, ids.to(device), mask, self._own_cache(numbers), positions.to(device))
        return [self._question(s, x[i : i + 1], residual[i : i + 1]) for i, s in enumerate(sights)]

    def _tail(self, number: int) -> tuple[int, ...]:
        prompt = self._prompts[number]
        return prompt.ids[self._starts[number] : prompt.question[1] - 1]

    def _question(self, sight: Sight, x: Tensor, residual: Tensor) -> Tensor:
        prompt, before = self._prompts[sight.prompt], self._starts[sight.prompt] + 1
        start, end = prompt.question
        start = max(
            min(last_of((start, end))[0], self._firsts[sight.prompt]), before
        )  # the first token of the tail is not predicted by the tail
        part = slice(start - before + len(sight.lead), end - before + len(sight.lead))
        logp = torch.log_softmax(self._backbone.logits(x[:, part], residual[:, part]), -1)[0]
        targets = torch.tensor(prompt.ids[start:end], device=logp.device)
        return -logp.gather(-1, targets[:, None])[:, 0].cpu()

    def _own_cache(self, numbers: Sequence[int]) -> Cache:
        """A copy of the cache for these rows. Cache layers replace their tensors and never write into them."""
        assert self._filled.kv_cache is not None, "a question behind documents has tokens before it"
        cache = copy.copy(self._filled.kv_cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        cache.batch_select_indices(self._rows[numbers])
        return cache


def last_of(span: Span) -> Span:
    """The last tokens of a question, or of a part of it, whose losses are used."""
    return max(span[0], span[1] - _LAST), span[1]


def before_documents(prompt: Prompt) -> int:
    """Number of tokens before the first document that is not empty."""
    return min(start for start, end in prompt.spans if end > start)
