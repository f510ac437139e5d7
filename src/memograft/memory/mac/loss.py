"""The loss of MAC's training, and what it is made of: a bank, what questions find in it, and answers behind that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from memograft.memory.base import Model
from memograft.memory.gist.compress import GistWeights, compressed, in_front, padded
from memograft.memory.gist.data import Asked, Batch
from memograft.memory.gist.views import IGNORED, logits_behind, targets, with_opening
from memograft.memory.mac.networks import Layers, Lora, Prefix
from memograft.memory.mac.weights import MacWeights, prefix
from memograft.model.adapter import applied
from memograft.model.kv import positions
from memograft.model.prefill import run

__all__ = ["Drawn", "answer_logits", "bank_of", "found_in", "loss_of"]

_NOISE = 1e-9  # keys and values of the first layer depend on no document, and vary less than this
_LEAST = 1e-9  # of an attention, before its logarithm


@dataclass(frozen=True)
class Drawn:
    """What is drawn for a pass of the training.

    Attributes:
        alone: which questions see only their own documents; if empty, none.
        shown: the questions that have a page in the prompt too, with the question that it belongs to.
    """

    alone: Sequence[bool] = ()
    shown: Mapping[int, int] = field(default_factory=dict)


def loss_of(
    model: Model,
    weights: MacWeights,
    batch: Batch,
    bank: Tensor,
    drawn: Drawn = Drawn(),
    *,
    imitate: float = 0.0,
    point: float = 0.0,
    teacher: GistWeights | None = None,
) -> Tensor:
    """Summed cross-entropy of a batch's answers in nats, and `imitate` and `point` for each of their tokens.

    `bank` (K, T, D) begins with the modulations of the batch's documents; others may follow.
    """
    own = torch.tensor([[n in row.gists for n in range(len(bank))] for row in batch.asked], device=bank.device)
    alone = torch.tensor(drawn.alone, device=bank.device)[:, None] if drawn.alone else None
    shares: list[Tensor] | None = [] if point else None
    found = found_in(model, weights, batch.asked, bank, None if alone is None else own | ~alone, shares)
    goal = targets(batch.asked, model.backbone.device)
    logits = answer_logits(model, weights, batch, found, drawn.shown)
    loss = cross_entropy(logits, goal[goal != IGNORED], reduction="sum")
    counts = (goal != IGNORED).sum(1)
    if imitate and teacher is not None and isinstance(weights.form, Prefix):
        layers = weights.form.of(weights.networks.modulate(found))
        loss = loss + imitate * (_distances(model, batch, layers, teacher) * counts).sum()
    if shares:
        attention = (shares[0] * own).sum(1)
        loss = loss - point * (attention.clamp_min(_LEAST).log() * counts).sum()
    return loss


def bank_of(model: Model, weights: MacWeights, texts: Sequence[Sequence[int]], learns: Sequence[bool]) -> Tensor:
    """phi (K, T, D) of documents, those that do not learn without gradients."""
    bank = torch.empty(len(texts), weights.tokens, model.backbone.width, device=model.backbone.device)
    for wanted in (False, True):
        chosen = [n for n, learn in enumerate(learns) if learn == wanted]
        if chosen:
            with torch.set_grad_enabled(wanted and torch.is_grad_enabled()):
                made = weights.documents(model.backbone, [texts[n] for n in chosen], model.pad_id)
            bank = bank.index_copy(0, torch.tensor(chosen, device=bank.device), made)
    return bank


def found_in(
    model: Model,
    weights: MacWeights,
    rows: Sequence[Asked],
    bank: Tensor,
    seen: Tensor | None = None,
    shares: list[Tensor] | None = None,
) -> Tensor:
    """phi* (B, T, D): what questions find in a bank (K, T, D); `seen` and `shares` as in `Networks.aggregate`."""
    states = weights.questions(model.backbone, [row.prompt[-weights.window :] for row in rows], model.pad_id)
    return weights.networks.aggregate(states, bank, seen, shares)


def answer_logits(
    model: Model, weights: MacWeights, batch: Batch, found: Tensor, shown: Mapping[int, int] | None = None
) -> Tensor:
    """(P, V) logits at the P places of `targets` that are not `IGNORED`, with what was found (B, T, D).

    A prefix stands behind the opening. A LoRA acts in the last FFN: the passes in front of it need no gradients.
    """
    backbone, rows, flat = model.backbone, batch.asked, weights.networks.modulate(found)
    texts, spared = [], 0 if isinstance(weights.form, Lora) else batch.opening.spared
    goal = targets(rows, backbone.device)
    for n, row in enumerate(rows):
        page = rows[shown[n]] if shown is not None and n in shown else row
        begins = page.full[:spared] == row.prompt[:spared]  # not if the template puts documents in front of messages
        in_prompt = shown is not None and n in shown and begins
        prompt = page.full[: page.page] + row.full[row.page :] if in_prompt else row.prompt
        texts.append(prompt[spared:] + row.answer[:-1])
    if isinstance(weights.form, Lora):
        ids, mask = padded(texts, model.pad_id, backbone.device)
        with torch.no_grad():
            x, residual, _ = run(backbone, ids, mask, None, positions(mask))
        with applied(backbone, weights.form.of(flat)):
            x, residual = (t[:, -goal.shape[1] :].contiguous() for t in (x, residual))
            return backbone.logits(x, residual)[goal != IGNORED]
    front = in_front(backbone, batch.opening, weights.window)
    seen = torch.ones(len(rows), weights.tokens, dtype=torch.long)
    behind = with_opening(backbone, front, prefix(backbone, weights.form.of(flat)).layers, seen)
    return logits_behind(backbone, texts, model.pad_id, goal, *behind, weights.end)


def _distances(model: Model, batch: Batch, layers: Layers, teacher: GistWeights) -> Tensor:
    """(B,) squared distance of keys and values from those of the document's gist, relative to their variance.

    It is 0 for questions about several documents.
    """
    with torch.no_grad():
        gists = compressed(model.backbone, teacher, batch.documents, model.pad_id)
    index = torch.tensor([row.gists[0] for row in batch.asked])
    total, count = torch.zeros(len(index), device=model.backbone.device), 0
    for own, others in zip(layers, gists.layers, strict=True):
        for mine, its in zip(own, others, strict=True):
            variance = its.float().var(0, correction=0).mean()
            if float(variance) > _NOISE * float(its.float().square().mean()):
                apart = (mine - its[index.to(its.device)].float()).square().mean((1, 2, 3)) / variance
                total, count = total + apart.to(total.device), count + 1
    single = torch.tensor([len(row.gists) == 1 for row in batch.asked], device=total.device)
    return total * single / max(1, count)
