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
from memograft.memory.mac.networks import Lora, Prefix
from memograft.memory.mac.weights import MacWeights, prefix
from memograft.model.adapter import applied
from memograft.model.kv import positions
from memograft.model.prefill import run

__all__ = ["Drawn", "answer_logits", "bank_of", "distances", "found_in", "loss_of", "missed"]

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
        with torch.no_grad():
            made = compressed(model.backbone, teacher, batch.documents, model.pad_id)
            gists = weights.form.flat(made.layers, model.backbone.device)
        apart = distances(weights, found, gists, [row.gists for row in batch.asked], weights.form.spread(gists))
        loss = loss + imitate * (apart * counts).sum()
    if shares:
        loss = loss + point * (missed(shares[0], own) * counts).sum()
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


def distances(
    weights: MacWeights, found: Tensor, gists: Tensor, own: Sequence[Sequence[int]], spread: Tensor
) -> Tensor:
    """(B,) squared distance of what was found (B, T, D), as keys and values, from the gist (T, size) of a question's
    document, in units of `Prefix.spread`. It is 0 for questions about several documents.
    """
    wanted = gists[[documents[0] for documents in own]].float()
    apart = ((weights.networks.modulate(found) - wanted).square() * spread).sum(-1).mean(-1)
    return apart * torch.tensor([len(documents) == 1 for documents in own], device=apart.device)


def missed(shares: Tensor, own: Tensor) -> Tensor:
    """(B,) negative logarithm of the attention (B, K) that a question's own documents (B, K) get, in nats."""
    return -(shares * own).sum(1).clamp_min(_LEAST).log()
