"""Run the questions of prompts again, each attending to only some part of the documents; the rest is masked.

The keys and values of the documents are taken from the prefill, so only the tokens after the documents are run. Earlier
turns are always masked, because they may have the question in them.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache

from memograft.memory.fastmem.rows import TrainingRows
from memograft.memory.fastmem.vocabulary import exact_losses
from memograft.model.backbone import Backbone
from memograft.model.kv import Prefill, Segment
from memograft.model.packed import attention, copied, packs
from memograft.model.prefill import prefill, prefill_segment, run
from memograft.prompt.builder import Prompt, Span

__all__ = ["Sight", "Tails", "before_documents", "behind_lead", "last_of"]

_LAST = 64  # tokens of the question, counted from its end, whose losses are used: earlier ones dilute the measure
_TOKENS = 8192  # cache tokens copied at a time, where each sight needs a row of its own
_FRONTS, _FRONT = 8, 64  # how many are kept for each engine, and tokens before the documents that they may have
_PACKED = 512  # tokens of a row, beyond which the next sight goes to another pass


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
        led: for each prompt, the pass that ran its `behind_lead` and the row there, if any did.
    """

    def __init__(
        self,
        backbone: Backbone,
        filled: Prefill,
        rows: Sequence[int],
        prompts: Sequence[Prompt],
        parts: Sequence[Span | None] = (),
        led: Sequence[tuple[Prefill, int] | None] = (),
    ) -> None:
        self._backbone, self._filled, self._prompts = backbone, filled, prompts
        self._behind_lead = list(led) or [None] * len(prompts)
        looked_at = [
            part or prompt.question for prompt, part in zip(prompts, parts or [None] * len(prompts), strict=True)
        ]
        self._firsts = [last_of(part)[0] for part in looked_at]
        self._rows = torch.tensor(rows)
        self._starts = [max(end for _, end in (*p.spans, *p.history)) for p in prompts]
        self._columns = [filled.columns(row, range(len(p.ids))).cpu() for row, p in zip(rows, prompts, strict=True)]
        # These tensors stay on the CPU until a pass runs, because a device map may spread the cache over devices.
        self._seen = filled.mask.cpu()[self._rows, :-1].bool()  # over the cache; True only before the documents
        for seen, columns, prompt in zip(self._seen, self._columns, prompts, strict=True):
            # Text between documents is masked as well: its keys and values were computed with documents visible.
            for first, end in ((before_documents(prompt), len(prompt.ids) - 1), *prompt.history):
                seen[columns[first:end]] = False

    @torch.no_grad()
    def losses(self, sights: Sequence[Sight]) -> list[Tensor]:
        """Losses in nats of the question's last 64 tokens, or from the start of its part, for each sight."""
        # x and residual (n, D) of each sight's question
        found = {n: self._read(sight.prompt) for n, sight in enumerate(sights) if self._is_read(sight)}
        found |= self._led(sights)
        for rows in self._passes(sights, [n for n in range(len(sights)) if n not in found]):
            found |= self._run(sights, rows)
        x, residual = (torch.cat([found[n][part] for n in range(len(sights))]) for part in (0, 1))
        targets = [torch.tensor(self._prompts[s.prompt].ids[slice(*self._asked(s.prompt))]) for s in sights]
        rows_of_all = TrainingRows(x, residual, torch.cat(targets).to(x.device), (len(x),))
        losses = exact_losses(self._backbone, rows_of_all).cpu()
        return list(torch.split(losses, [len(t) for t in targets]))

    def _is_read(self, sight: Sight) -> bool:
        """Whether the prompt itself shows this: its only document that is not empty, and no turns before."""
        prompt = self._prompts[sight.prompt]
        return not prompt.history and not sight.lead and [s for s in prompt.spans if s[1] > s[0]] == [sight.span]

    def _read(self, number: int) -> tuple[Tensor, Tensor]:
        """x and residual (n, D) of the tokens that predict the question, from the prefill."""
        first, end = self._asked(number)
        row, columns = int(self._rows[number]), self._columns[number][first - 1 : end - 1].to(self._filled.x.device)
        return self._filled.x[row, columns], self._filled.residual[row, columns]

    def _led(self, sights: Sequence[Sight]) -> dict[int, tuple[Tensor, Tensor]]:
        """x and residual (n, D) of questions behind their lead and no document: of the prompts' pass, or one of their
        own, which needs neither the prefill nor, again, what is the same for all questions."""
        ran, texts = {}, {}
        for n, sight in enumerate(sights):
            if sight.lead and (own := self._behind_lead[sight.prompt]) is not None:
                ran[n] = own
            elif sight.lead and (text := behind_lead(self._backbone, self._prompts[sight.prompt], sight.lead)):
                texts[n] = text
        if texts:
            ids, segments = zip(*texts.values(), strict=True)
            filled = prefill(self._backbone, ids, 0, segments)
            ran |= {n: (filled, row) for row, n in enumerate(texts)}
        found = {}
        for n, (filled, row) in ran.items():
            first, end = self._asked(sights[n].prompt)
            last = int(filled.text[row].sum()) - 1
            columns = filled.columns(row, range(last - (end - first), last)).to(filled.x.device)
            found[n] = filled.x[row, columns], filled.residual[row, columns]
        return found

    def _passes(self, sights: Sequence[Sight], which: Sequence[int]) -> list[list[list[int]]]:
        """Which of the sights run together: of each pass, of each row, their indices."""
        assert self._filled.kv_cache is not None, "a question behind documents has tokens before it"
        columns = self._filled.ids.shape[1]
        if not packs(self._backbone, self._filled.kv_cache):
            size = max(1, _TOKENS // columns)
            alone = [[n] for n in which]
            return [alone[start : start + size] for start in range(0, len(alone), size)]
        passes: list[dict[int, list[int]]] = []
        filled: dict[int, int] = {}  # how many tokens each prompt's sights have so far
        for n in which:
            sight = sights[n]
            before = filled.get(sight.prompt, 0)
            filled[sight.prompt] = before + len(sight.lead) + len(self._tail(sight.prompt))
            number = before // _PACKED
            passes += [{} for _ in range(number + 1 - len(passes))]
            passes[number].setdefault(sight.prompt, []).append(n)
        return [list(rows.values()) for rows in passes if rows]

    def _run(self, sights: Sequence[Sight], rows: Sequence[Sequence[int]]) -> dict[int, tuple[Tensor, Tensor]]:
        """One pass; x and residual (n, D) of the tokens that predict each sight's question."""
        numbers = [sights[row[0]].prompt for row in rows]
        ids, owner, positions, cached = (list[Tensor]() for _ in range(4))
        for number, row in zip(numbers, rows, strict=True):
            tails = [[*sights[n].lead, *self._tail(number)] for n in row]
            lengths = torch.tensor([len(tail) for tail in tails])
            ids.append(torch.tensor([token for tail in tails for token in tail]))
            owner.append(torch.arange(len(row)).repeat_interleave(lengths))
            positions.append(torch.cat([sights[n].end + torch.arange(len(t)) for n, t in zip(row, tails, strict=True)]))
            seen = self._seen[number].repeat(len(row), 1)
            for own, n in zip(seen, row, strict=True):
                own[self._columns[number][slice(*sights[n].span)]] = True
            cached.append(seen[owner[-1]])
        device, text = self._filled.ids.device, pad_sequence([torch.ones_like(own) for own in owner], True)
        if all(len(row) == 1 for row in rows):
            mask = torch.cat([torch.stack([seen[0] for seen in cached]), text], 1).to(device)
        else:
            pad = pad_sequence(owner, True, padding_value=-1).to(device)
            mask = attention(pad_sequence(cached, True).to(device), pad, self._backbone.model.dtype)
        # Padding gets position 0, because counting on could exceed the model's largest position.
        places = pad_sequence(positions, True).to(device)
        x, residual, _ = run(self._backbone, pad_sequence(ids, True).to(device), mask, self._own_cache(numbers), places)
        found = {}
        for at, (number, row) in enumerate(zip(numbers, rows, strict=True)):
            first, end = self._asked(number)
            start = first - self._starts[number] - 1  # of the tail; each token is predicted by the one before it
            for n in row:
                start += len(sights[n].lead)
                part = slice(start, start + end - first)
                found[n] = (x[at, part], residual[at, part])
                start += len(self._tail(number))
        return found

    def _tail(self, number: int) -> tuple[int, ...]:
        prompt = self._prompts[number]
        return prompt.ids[self._starts[number] : prompt.question[1] - 1]

    def _asked(self, number: int) -> Span:
        """Tokens of the prompt whose losses are used; the tail's first token is not predicted by the tail."""
        start, end = self._prompts[number].question
        return max(min(last_of((start, end))[0], self._firsts[number]), self._starts[number] + 1), end

    def _own_cache(self, numbers: Sequence[int]) -> Cache:
        """A copy of the cache for the rows of these prompts."""
        assert self._filled.kv_cache is not None
        cache, rows = copied(self._filled.kv_cache), self._rows[list(numbers)]
        if not torch.equal(rows, torch.arange(len(self._filled.ids))):
            cache.batch_select_indices(rows)
        return cache


def behind_lead(backbone: Backbone, prompt: Prompt, lead: Sequence[int]) -> tuple[tuple[int, ...], Segment] | None:
    """The question behind `lead` instead of the documents: its tokens, and the segment that they begin with.

    None if what is before the documents is long, and therefore probably not the same for other requests.
    """
    end, start = before_documents(prompt), max(end for _, end in prompt.spans)
    if end > _FRONT or prompt.history:
        return None
    front = (*prompt.ids[:end], *lead)
    return (*front, *prompt.ids[start : prompt.question[1]]), _front(backbone, front)


_fronts: weakref.WeakKeyDictionary[Backbone, dict[tuple[object, ...], Segment]] = weakref.WeakKeyDictionary()


def _front(backbone: Backbone, ids: tuple[int, ...]) -> Segment:
    """The keys and values of the template's tokens and LEAD, which are the same for most requests."""
    known, key = _fronts.setdefault(backbone, {}), (backbone.device, backbone.model.dtype, ids)
    found = known.get(key)
    if found is None:
        if len(known) >= _FRONTS:
            known.pop(next(iter(known)))
        found = known[key] = prefill_segment(backbone, ids)
    return found


def last_of(span: Span) -> Span:
    """The last tokens of a question, or of a part of it, whose losses are used."""
    return max(span[0], span[1] - _LAST), span[1]


def before_documents(prompt: Prompt) -> int:
    """Number of tokens before the first document that is not empty."""
    return min(start for start, end in prompt.spans if end > start)
