"""Gisting as the paper masks it: one pass over documents, gists and question, with a mask of four dimensions.

The row is [document 1 | gist 1 | document 2 | gist 2 | ... | opening | question]. The LoRA's outputs are multiplied by
a mask of the tokens that it acts on. No cache, no padding; modules are wrapped by hooks that this file adds and
removes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memograft.model.backbone import cache_of


@dataclass(frozen=True)
class Layout:
    """The row's tokens: which document each belongs to (0 for opening and question), and whether it is a gist token."""

    owner: Tensor
    gist: Tensor
    positions: Tensor

    @classmethod
    def of(
        cls, documents: Sequence[Sequence[int]], opening: int, question: Sequence[int], k: int, window: int
    ) -> Layout:
        """The first `opening` tokens of the question stand in front of the gists."""
        owner: list[int] = []
        gist: list[bool] = []
        positions: list[int] = []
        for n, ids in enumerate(documents, start=1):
            owner += [n] * (len(ids) + k)
            gist += [False] * len(ids) + [True] * k
            positions += range(window - len(ids), window + k)
        owner += [0] * len(question)
        gist += [False] * len(question)
        positions += range(window - opening, window)
        positions += range(window + k, window + k + len(question) - opening)
        return cls(torch.tensor(owner), torch.tensor(gist), torch.tensor([positions]))

    def allowed(self, blind: bool = False) -> Tensor:
        """(T, T) bool: row sees column. `blind` gists do not see their document, so that nothing of it can pass."""
        same = self.owner[:, None] == self.owner[None]
        behind = (self.owner[:, None] == 0) & (self.positions[0][:, None] > self.positions[0]) & self.gist[None]
        seen = (same | behind) & torch.ones(len(self.owner), len(self.owner), dtype=torch.bool).tril()
        if blind:
            seen &= ~(self.gist[:, None] & ~self.gist[None])
        return seen


def form(allowed: Tensor, attention: str) -> Tensor:
    """(T, T) bool -> (1, 1, T, T) in the form that the attention implementation takes: eager adds it to the scores."""
    if attention == "sdpa":
        return allowed[None, None]
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[None, None]


def masked_pass(
    model: Any,
    modules: dict[str, nn.Module],
    weights: Any,
    documents: Sequence[Sequence[int]],
    opening: int,
    question: Sequence[int],
    mask: Tensor,
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Logits of the question (Q, V), and for each layer the gists' keys and values (N, H, k, head dimension)."""
    layout = Layout.of(documents, opening, question, len(weights.embeddings), weights.window)
    embed = model.get_input_embeddings()
    parts = [part for ids in documents for part in (embed(torch.tensor(ids)), weights.embeddings)]
    row = torch.cat([*parts, embed(torch.tensor(question))])[None]
    acts = layout.owner > 0 if weights.on_documents else layout.gist
    handles = []
    for name, a in weights.adapter.lora_a.items():
        b = weights.adapter.lora_b[name]

        def hook(_module: nn.Module, args: Any, output: Tensor, a: Tensor = a, b: Tensor = b) -> Tensor:
            change = args[0] @ a.T @ b.T
            return output + change * acts[:, None].reshape(*[1] * (change.ndim - 2), -1, 1)

        handles.append(modules[name].register_forward_hook(hook))
    try:
        out = model(inputs_embeds=row, attention_mask=mask, position_ids=layout.positions, use_cache=True)
    finally:
        for handle in handles:
            handle.remove()
    columns = layout.gist.nonzero().flatten()

    def of_gists(tensor: Tensor) -> Tensor:
        own = tensor[0, :, columns]
        return own.unflatten(1, (len(documents), -1)).transpose(0, 1)

    layers = [(of_gists(layer.keys), of_gists(layer.values)) for layer in cache_of(out).layers]
    return out.logits[0, len(layout.owner) - len(question) :], layers
