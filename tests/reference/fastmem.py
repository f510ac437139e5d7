"""FastMem by autograd through the whole model, without hooks, caches and stored rows; slow but simple. And its estimate
of a KL, row by row."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, parametrize
from transformers.pytorch_utils import Conv1D

Trained = tuple[nn.Module, list[float], Tensor, float]  # model, loss of each step, final CE per token, final mean KL


def _train(
    model: nn.Module,
    leaves: Sequence[Tensor],
    ids: Sequence[int],
    context: Sequence[int],
    steps: int,
    lr: float,
    beta: float,
    decay: float,
    ends: Sequence[tuple[int, int]] = (),
) -> Trained:
    """Fit `leaves` so that the tokens at the positions `context` of `ids` are predicted; section 3 of the paper.

    `ends`: (position, token), each a token to be predicted at that position although another one follows.
    """
    tokens, count = torch.tensor([list(ids)]), len(context)
    places = torch.tensor([*(t - 1 for t in context), *(position for position, _ in ends)])
    targets = torch.tensor([*(ids[t] for t in context), *(token for _, token in ends)])

    def logp() -> Tensor:
        return F.log_softmax(model(input_ids=tokens, use_cache=False).logits[0, places].float(), -1)

    base = logp().detach()
    optimiser = torch.optim.AdamW(leaves, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=decay)
    losses = []
    for _ in range(steps):
        now = logp()
        ce = F.nll_loss(now, targets)
        kl = F.kl_div(now, base, log_target=True, reduction="batchmean")
        loss = ce + beta * kl
        optimiser.zero_grad()
        loss.backward()
        clip_grad_norm_(leaves, 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        now = logp()[:count]
        per_token = F.nll_loss(now, targets[:count], reduction="none")
        return model, losses, per_token, float(F.kl_div(now, base[:count], log_target=True, reduction="batchmean"))


def full(
    model: nn.Module, names: Sequence[str], ids: Sequence[int], context: Sequence[int], lr: float, **settings: Any
) -> Trained:
    """The paper's recipe: the projections' own weights (not their biases), AdamW with weight decay 0.01."""
    twin = copy.deepcopy(model).requires_grad_(False)
    leaves = [twin.get_submodule(name).weight.requires_grad_() for name in names]
    return _train(twin, leaves, ids, context, **{"steps": 10, "beta": 0.1, "decay": 0.01, "lr": lr, **settings})


class _PlusLoRA(nn.Module):
    """weight -> weight + B A, transposed if the layer stores it that way."""

    def __init__(self, a: Tensor, b: Tensor, transposed: bool) -> None:
        super().__init__()
        self.a, self.b, self.transposed = nn.Parameter(a), nn.Parameter(b), transposed

    def forward(self, weight: Tensor) -> Tensor:
        change = self.b @ self.a
        return weight + (change.T if self.transposed else change)


def lora(
    model: nn.Module,
    names: Sequence[str],
    ids: Sequence[int],
    context: Sequence[int],
    rank: int,
    seed: int,
    shape: Callable[[nn.Module], tuple[int, int]],
    **settings: Any,
) -> Trained:
    """LoRA as W + B A written into the model, with A initialised as in PEFT and B zero."""
    twin = copy.deepcopy(model).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    leaves: list[Tensor] = []
    for name in names:
        module = twin.get_submodule(name)
        inside, out = shape(module)
        bound = 1 / math.sqrt(inside)  # equals kaiming_uniform_(a=sqrt(5))
        a = (torch.rand(rank, inside, generator=generator) * 2 - 1) * bound
        plus = _PlusLoRA(a, torch.zeros(out, rank), isinstance(module, Conv1D))
        parametrize.register_parametrization(module, "weight", plus)
        leaves += [plus.a, plus.b]
    return _train(twin, leaves, ids, context, **settings)


def estimated_kl(whole: tuple[Tensor, Tensor], short: tuple[Tensor, Tensor], draws: int) -> tuple[float, float, float]:
    """The mean KL as reported with a shortlist, the same without drawn rows, and the exact one.

    Both pairs are logits of the base and the memorized model, over all tokens and over candidates and bucket (last).
    """
    terms = []
    for base, now, base_short, now_short in zip(*whole, *short, strict=True):
        p, q = base.softmax(-1), now.softmax(-1)
        before, after = base_short - base.logsumexp(-1), now_short - now.logsumexp(-1)
        exact = sum(float(a * (a / b).log()) for a, b in zip(p, q, strict=True))
        estimate = sum(float(a.exp() * (a - b)) for a, b in zip(before, after, strict=True))
        terms.append((exact, estimate, float(before[-1].exp())))
    exact, estimate, bucket = (sum(column) / len(terms) for column in zip(*terms, strict=True))
    reached, missed, drawn = 0.0, 0.0, 0
    for one, other, rest in terms:
        reached += rest
        while drawn < draws and (drawn + 0.5) / draws * bucket * len(terms) <= reached:
            missed += (one - other) / rest
            drawn += 1
    return estimate + bucket * missed / draws, estimate, exact
