"""Which documents are about the question, judged by the model itself before anything is memorized.

    relevance(d) = 1 - L(question | d) / L(question)

L is the summed cross-entropy of the question's tokens in nats: with document d alone in sight, and with none. A document
that names what the question asks about takes most of its surprise away (1 would be all of it); one about something else
takes none, or makes it worse (below 0). This is the query likelihood of retrieval (Ponte and Croft, 1998), with the
model that is about to answer.

It costs one short pass per document over the question's tokens: the documents' keys and values are in the prefill
already, and those that are not meant are masked.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache

from memograft.backbone import Backbone
from memograft.prefill import Prefill, run
from memograft.prompt import Prompt

__all__ = ["AUTO", "can_judge", "relevance"]

AUTO = 0.4  # chosen on the tuning split of tiny's world: see docs/method.md
_LAST = 64  # tokens of the question that are looked at: instructions before it would only dilute it


def can_judge(prompt: Prompt) -> bool:
    """Whether the question stands behind the documents, so that they can make it more or less likely."""
    start, end = prompt.question
    return end - start > 1 and any(b > a for a, b in prompt.spans) and start >= max(b for _, b in prompt.spans)


@torch.no_grad()
def relevance(
    backbone: Backbone, filled: Prefill, rows: Sequence[int], prompts: Sequence[Prompt]
) -> list[tuple[float, ...]]:
    """For each of the prompts, which stand in these rows of `filled`: one number of at most 1 for each document."""
    tail = _Tail(backbone, filled, rows, prompts)
    none = tail.loss(None).tolist()
    alone = [tail.loss(d).tolist() for d in range(max(len(p.spans) for p in prompts))]
    # A question that says nothing (loss 0) is made no likelier by anything.
    return [
        tuple(1 - alone[d][n] / none[n] if none[n] > 0 else 0.0 for d in range(len(prompt.spans)))
        for n, prompt in enumerate(prompts)
    ]


class _Tail:
    """What follows the documents up to the end of the question, run again behind any one of them."""

    def __init__(self, backbone: Backbone, filled: Prefill, rows: Sequence[int], prompts: Sequence[Prompt]) -> None:
        self._backbone, self._prompts = backbone, prompts
        self._rows = torch.as_tensor(rows, device=filled.ids.device)
        self._cache = filled.kv_cache
        self._all = list(rows) == list(range(len(filled.ids)))
        self._starts = [max(end for _, end in p.spans) for p in prompts]
        lengths = [p.question[1] - 1 - start for p, start in zip(prompts, self._starts, strict=True)]
        shape = (len(prompts), max(lengths))
        self._ids, self._new = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        self._positions = torch.zeros(shape, dtype=torch.long)
        self._seen = filled.mask[self._rows, :-1].clone()
        self._columns: list[list[Tensor]] = []  # of each document of each row, in the prefill
        for n, (prompt, start, length) in enumerate(zip(prompts, self._starts, lengths, strict=True)):
            self._ids[n, :length] = torch.tensor(prompt.ids[start : start + length])
            self._positions[n, :length] = torch.arange(start, start + length)
            self._new[n, :length] = 1
            self._seen[n, filled.columns(rows[n], range(start, len(prompt.ids)))[:-1]] = 0
            self._columns.append([filled.columns(rows[n], range(*span)) for span in prompt.spans])
        self._ids, self._new, self._positions = (t.to(filled.ids.device) for t in (self._ids, self._new, self._positions))

    def loss(self, visible: int | None) -> Tensor:
        """(B,) nats: of each row's question with only document number `visible` in sight, or none."""
        seen = self._seen.clone()
        for n, documents in enumerate(self._columns):
            for number, columns in enumerate(documents):
                if number != visible:
                    seen[n, columns] = 0
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
        """A cache to write to. Its layers never write into a tensor they hold, so the tensors can be shared."""
        if self._cache is None:
            return None
        cache = copy.copy(self._cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        if not self._all:
            cache.batch_select_indices(self._rows)
        return cache
