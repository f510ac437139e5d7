"""The decoding loop: rows join and leave between any two tokens; each has its own adapter, rules, sampling and end.

    add ──> [row] ──┐                                     ┌──> on_tokens
    add ──> [row] ──┼──> pass ──> rules ──> processors ──> tokens ──> row done? ──> on_end
    add ──> [row] ──┘    (N, V)             of each row      (N,)

Transformers' `generate` decodes a batch until its last row ends. Here only the chosen tokens are read back from a GPU,
once for each pass. An error ends the row that causes it: a pass that fails is repeated with half of the rows each.
"""

from __future__ import annotations

import copy
import inspect
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from memograft.decoding.batch_processor import States, Steps, caught, process
from memograft.decoding.chain import Chain
from memograft.decoding.dola import early_states
from memograft.decoding.ends import Ends, end_tokens
from memograft.decoding.lookup import Lookup
from memograft.decoding.row import Row
from memograft.errors import RequestCancelledError
from memograft.model.adapter import applied, stack
from memograft.model.backbone import Backbone, cache_name
from memograft.model.base_logits import base_logits
from memograft.model.columns import Columns, columns_of
from memograft.model.key_bias import biased
from memograft.model.kv import Prefill

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Loop", "decode"]


@dataclass
class _Slot:
    """A row of the cache: a request's row, or its echo, which is given the same tokens behind a shorter prompt."""

    row: Row
    chain: Chain
    lookup: Lookup | None
    echo: bool = False
    layers: tuple[int, ...] = ()  # whose states DoLa needs

    def draft(self, rows: int) -> list[int]:
        """What may follow the row's tokens."""
        if self.lookup is None or self.row.done:
            return []
        return self.lookup.draft(self.row.tokens, rows, self.row.max_new_tokens - len(self.row.tokens) - 1)


@dataclass
class _Out:
    """The result of a pass over the slots `first` and following."""

    first: int
    logits: Tensor  # (N, Q, V)
    base: dict[int, Tensor]  # (V,) by slot
    states: dict[str, Tensor]  # (N, D) by place
    early: dict[int, Tensor]  # (N, D) by layer


class Loop:
    """Decodes rows until they are done.

    Args:
        backbone: the model.
        tokenizer: its tokenizer, for stop strings.
        prompt_lookup: maximum length of a draft from the prompt; 0 drafts nothing.
    """

    def __init__(self, backbone: Backbone, tokenizer: PreTrainedTokenizerBase, prompt_lookup: int = 0) -> None:
        self._backbone, self._ends, self._most = backbone, Ends(backbone, tokenizer), prompt_lookup
        self._config = copy.deepcopy(backbone.model.generation_config)
        self._eos = end_tokens(backbone, tokenizer)
        self._batches: list[_Batch] = []

    @property
    def rows(self) -> list[Row]:
        """The rows that are not done."""
        return [slot.row for batch in self._batches for slot in batch.slots if not (slot.echo or slot.row.done)]

    @torch.inference_mode()
    def add(self, filled: Prefill, rows: Sequence[Row]) -> None:
        """Add rows, which take part from the next step on. Here they get their first token if that needs no pass.

        After the rows, `filled` has an echo for each row with `cad`, in their order: its prompt without documents.
        """
        echoed = [row for row in rows if row.cad is not None]
        slots = []
        for n, row in enumerate([*rows, *echoed]):
            prompt = filled.ids[n][filled.text[n].bool()]
            chain = Chain(row, prompt, self._config, self._eos)
            drafts = self._most and chain.greedy and n < len(rows)
            lookup, echo = Lookup(prompt.tolist(), self._most) if drafts else None, n >= len(rows)
            layers = () if echo or row.dola is None else row.dola.candidates(self._backbone)
            slots.append(_Slot(row, chain, lookup, echo, layers))
        first = _first(self._backbone, filled, slots)
        if first is None:
            filled = replace(filled, last=None)
        batch = next((batch for batch in self._batches if batch.join(filled, slots)), None)
        if batch is None:
            batch = _Batch(self._backbone, filled, slots)
            self._batches.append(batch)
        if first is not None:
            batch.begin(first, self._ends)

    @torch.inference_mode()
    def step(self) -> None:
        """One token for each row, or more if drafts are right. Rows that are done leave."""
        for batch in list(self._batches):
            batch.step(self._ends)
            if not batch.slots:
                self._batches.remove(batch)


def decode(backbone: Backbone, filled: Prefill, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> None:
    """Decode until every row is done; see `Loop.add`."""
    loop = Loop(backbone, tokenizer)
    loop.add(filled, rows)
    while loop.rows:
        loop.step()


class _Batch:
    """Rows that share a cache and a pass."""

    def __init__(self, backbone: Backbone, filled: Prefill, slots: Sequence[_Slot]) -> None:
        self._backbone, self.slots = backbone, list(slots)
        self._columns = columns_of(backbone, filled)
        self._tokens, self._positions = filled.ids[:, -1].clone(), filled.positions[:, -1]  # (N,) of the next pass
        self._stacked: dict[str, tuple[Tensor, Tensor]] | None = None
        self._places = "position_ids" in inspect.signature(backbone.model.forward).parameters

    def join(self, filled: Prefill, slots: Sequence[_Slot]) -> bool:
        """Add rows; False if the cache does not allow it."""
        if not isinstance(self._columns, Columns):
            return False
        self._columns.join(filled)
        self.slots += slots
        self._tokens = torch.cat([self._tokens, filled.ids[:, -1]])
        self._positions = torch.cat([self._positions, filled.positions[:, -1]])
        self._stacked = None
        return True

    def begin(self, out: _Out, ends: Ends) -> None:
        """The first token of the slots that joined last, whose last tokens of the prompt have been run."""
        new = slice(len(self.slots) - len(out.logits), len(self.slots))
        slots = self.slots[new]
        _give_up(slots)
        chosen = _choose(self._backbone, slots, [out])
        self._tokens[new] = chosen
        self._positions[new] += 1
        for slot, token in zip(slots, chosen.tolist(), strict=True):
            if not (slot.echo or slot.row.done):
                ends.take(slot.row, token)
        self._leave()

    def step(self, ends: Ends) -> None:
        """One token for each row, or more where a draft is right."""
        _give_up(self.slots)
        self._leave()
        if not self.slots:
            return
        drafts = self._drafts()
        tokens = self._tokens[:, None]
        if width := max(map(len, drafts)):
            padded = [[*draft, *[0] * (width - len(draft))] for draft in drafts]
            tokens = torch.cat([tokens, torch.tensor(padded, device=tokens.device)], 1)
        outs = self._passes(tokens, 0, len(self.slots))
        if not outs:
            self._leave()
            return
        chosen = _choose(self._backbone, self.slots, outs)[:, None]
        if width:
            chosen = torch.cat([chosen, chosen.new_zeros(len(chosen), width)], 1)
            for out in outs:
                chosen[out.first : out.first + len(out.logits), 1:] = out.logits[:, 1:].argmax(-1)
        read = chosen.tolist()  # the only read from a GPU
        right = [_agreeing(draft, found) for draft, found in zip(drafts, read, strict=True)]
        self._columns.advance([1 + count for count in right])
        self._tokens, self._positions = chosen[:, 0], self._positions + 1
        if width:
            at = torch.tensor(right, device=tokens.device)
            self._tokens, self._positions = chosen.gather(1, at[:, None])[:, 0], self._positions + at
        for slot, draft, found, count in zip(self.slots, drafts, read, right, strict=True):
            if slot.lookup is not None and draft:
                slot.lookup.verified(len(draft), count)
            for token in found[: 1 + count]:
                if not (slot.echo or slot.row.done):
                    ends.take(slot.row, token)
        self._leave()

    def _drafts(self) -> list[list[int]]:
        """A draft for each slot. Sliding windows count columns, so with them no row may have a rejected one inside."""
        if self._columns.slides and len(self.slots) > 1:
            return [[]] * len(self.slots)
        return [slot.draft(len(self.slots)) for slot in self.slots]

    def _leave(self) -> None:
        """Remove the slots of rows that are done, and then call `on_end` of these rows."""
        done = [slot for slot in self.slots if slot.row.done]
        if isinstance(self._columns, Columns):
            order = list(range(len(self.slots)))
            for n in [n for n, slot in enumerate(self.slots) if slot.row.done][::-1]:
                self._columns.leave(n)
                order[n] = order[-1]
                order.pop()
            if done:
                self.slots = [self.slots[n] for n in order]
                index = torch.tensor(order, dtype=torch.long, device=self._tokens.device)
                self._tokens, self._positions, self._stacked = self._tokens[index], self._positions[index], None
        elif len(done) == len(self.slots):
            self.slots = []
        for slot in done:
            if not slot.echo:
                on_end, slot.row.on_end = slot.row.on_end, lambda _: None
                on_end(slot.row)

    def _passes(self, tokens: Tensor, first: int, last: int) -> list[_Out]:
        """The passes over some slots: one, or two over half of them each if it fails."""
        try:
            return [self._pass(tokens[first:last], first, last)]
        except Exception as error:
            if last - first == 1 or not isinstance(self._columns, Columns):
                for slot in self.slots[first:last]:
                    slot.row.error = slot.row.error or error
                return []
            traceback.clear_frames(error.__traceback__)  # frees the memory of the failed pass
        half = (first + last) // 2
        return self._passes(tokens, first, half) + self._passes(tokens, half, last)

    def _pass(self, tokens: Tensor, first: int, last: int) -> _Out:
        """A pass over tokens (N, Q) of some slots."""
        slots, part, model = self.slots[first:last], slice(first, last), self._backbone.model
        ruled = _ruled(slots)
        if self._stacked is None:
            self._stacked = stack([slot.row.adapter for slot in self.slots], self._backbone)
        self._columns.part = part
        extra: dict[str, Any] = {cache_name(model.forward): self._columns.cache}
        if self._places:
            extra["position_ids"] = self._positions[part, None] + torch.arange(tokens.shape[1], device=tokens.device)
        with ExitStack() as scope:
            own = {name: (a[part], b[part]) for name, (a, b) in self._stacked.items()}
            states = _entered(scope, self._backbone, slots, own, len(ruled))
            seen = scope.enter_context(base_logits(self._backbone, len(slots), ruled)) if ruled else None
            layers = {n for slot in slots for n in slot.layers}
            early = scope.enter_context(early_states(self._backbone, layers)) if layers else {}
            scope.enter_context(biased(self._backbone, self._columns.cache))
            mask = self._columns.mask(tokens.shape[1])
            out = model(input_ids=tokens, attention_mask=mask, use_cache=True, **extra)
        base = {} if seen is None else {first + n: seen.logits[g, 0] for g, n in enumerate(ruled)}
        return _Out(first, out.logits, base, states.at if states is not None else {}, early)


def _first(backbone: Backbone, filled: Prefill, slots: Sequence[_Slot]) -> _Out | None:
    """What a pass over the prompts' last tokens would give, from their states. None if a pass has to run them.

    That is so if the prefill did not, or if DoLa needs the states of lower layers, which only a pass records. An error
    is left to the pass, which finds the row that causes it.
    """
    if filled.last is None or any(slot.layers for slot in slots):
        return None
    ruled = _ruled(slots)
    rows = [*range(len(slots)), *ruled]
    try:
        with ExitStack() as scope:
            states = _entered(scope, backbone, slots, stack([s.row.adapter for s in slots], backbone), len(ruled))
            logits = backbone.logits(filled.last.x[rows], filled.last.residual[rows])
    except Exception:
        return None
    base = {n: logits[len(slots) + g, 0] for g, n in enumerate(ruled)}
    return _Out(0, logits[: len(slots)], base, states.at if states is not None else {}, {})


def _entered(
    scope: ExitStack,
    backbone: Backbone,
    slots: Sequence[_Slot],
    stacked: Mapping[str, tuple[Tensor, Tensor]],
    ruled: int,
) -> States | None:
    """Apply the adapters of the slots, and record the states that their batch processors need, if any."""
    places = [slot.row.batch.place for slot in slots if slot.row.batch is not None]
    if any(slot.row.adapter is not None for slot in slots):
        scope.enter_context(applied(backbone, stacked, bare=ruled))
    return scope.enter_context(caught(backbone, places, len(slots) + ruled)) if places else None


def _ruled(slots: Sequence[_Slot]) -> list[int]:
    """The slots that also need the base model's logits."""
    return [n for n, slot in enumerate(slots) if slot.row.ruled and not (slot.echo or slot.row.done)]


def _give_up(slots: Sequence[_Slot]) -> None:
    for slot in slots:
        if not slot.row.done and slot.row.given_up():
            slot.row.error = RequestCancelledError("the request was given up while it was being answered")


def _choose(backbone: Backbone, slots: Sequence[_Slot], outs: Sequence[_Out]) -> Tensor:
    """The next token of each slot (N,), from its logits, rules and processors."""
    first = outs[0]
    logits = first.logits.new_zeros(len(slots), first.logits.shape[-1], dtype=torch.float32)
    for out in outs:
        logits[out.first : out.first + len(out.logits)] = out.logits[:, 0]
        for n, base in out.base.items():
            for rule in slots[n].row.rules:
                logits[n] = rule(logits[n], base, slots[n].row.tokens)
    echoes = {slot.row: n for n, slot in enumerate(slots) if slot.echo}
    own = {n: slot for n, slot in enumerate(slots) if not (slot.echo or slot.row.done)}
    for n, slot in own.items():
        if slot.row in echoes and slot.row.cad is not None:
            logits[n] = slot.row.cad.contrasted(logits[n], logits[echoes[slot.row]])
    for n, slot in own.items():
        if slot.row.dola is not None:
            (out,) = [out for out in outs if out.first <= n < out.first + len(out.logits)]
            states = torch.stack([out.early[layer][n - out.first] for layer in slot.layers])
            logits[n] = slot.row.dola.contrasted(backbone, logits[n], states)
    steps = _process(logits, outs, own)
    for n, slot in own.items():
        if slot.chain.needed and not slot.row.done:
            try:
                logits[n] = slot.chain(logits[n])
            except Exception as error:
                slot.row.error = error
    chosen = logits.argmax(-1)
    for n, slot in own.items():
        slot.chain.take(chosen[n])
        if slot.row in echoes:
            chosen[echoes[slot.row]] = chosen[n]
    for rows, moved in steps:
        found = moved(chosen[rows].cpu().numpy())
        for g, n in enumerate(rows):
            slots[n].row.moved.append((g, found))
    return chosen


def _process(logits: Tensor, outs: Sequence[_Out], own: Mapping[int, _Slot]) -> Steps:
    """Apply the batch processors to the logits (N, V)."""
    processors = {n: slot.row.batch for n, slot in own.items() if slot.row.batch is not None and not slot.row.done}
    if not processors:
        return []
    states: dict[str, Tensor] = {}
    for place in {processor.place for processor in processors.values()}:
        (like, *_) = [out.states[place] for out in outs if place in out.states]
        states[place] = like.new_zeros(len(logits), like.shape[-1])
        for out in outs:
            if place in out.states:
                states[place][out.first : out.first + len(out.logits)] = out.states[place][: len(out.logits)]
    errors, steps = process(logits, states, processors)
    for n, error in errors.items():
        own[n].row.error = error
    return steps


def _agreeing(draft: Sequence[int], chosen: Sequence[int]) -> int:
    """How many tokens of a draft the model chose too."""
    pairs = zip(draft, chosen, strict=False)
    return next((n for n, (drafted, token) in enumerate(pairs) if drafted != token), len(draft))
