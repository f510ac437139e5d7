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
from memograft.memory.mac.networks import Layers, Lora, Prefix, hierarchical
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
        alone: which questions see only their own documents; if empty, none. Not with a `group`.
        shown: the questions that have a page in the prompt too, with the question that it belongs to.
        group: how many modulations are aggregated at once; None for all.
        order: of the bank's modulations in groups; None is that of the bank.
    """

    alone: Sequence[bool] = ()
    shown: Mapping[int, int] = field(default_factory=dict)
    group: int | None = None
    order: Tensor | None = None


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
    if drawn.order is not None:
        bank, own = bank[drawn.order], own[:, drawn.order]
    alone = torch.tensor(drawn.alone, device=bank.device)[:, None] if drawn.alone else None
    shares: list[Tensor] | None = [] if point else None
    found = found_in(model, weights, batch.asked, bank, None if alone is None else own | ~alone, shares, drawn.group)
    goal = targets(batch.asked, model.backbone.device)
    logits = answer_logits(model, weights, batch, found, drawn.shown)
    loss = cross_entropy(logits.flatten(0, 1), goal.flatten(), reduction="sum")
    counts = (goal != IGNORED).sum(1)
    if imitate and teacher is not None and isinstance(weights.form, Prefix):
        layers = weights.form.of(weights.networks.modulate(found))
        loss = loss + imitate * (_distances(model, batch, layers, teacher) * counts).sum()
    if shares:
        loss = loss - point * (_pointed(shares, own, drawn.group or len(bank)) * counts).sum()
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
    group: int | None = None,
) -> Tensor:
    """phi* (B, T, D): what questions find in a bank (K, T, D).

    `seen` (B, K) is True for the modulations that a question may attend to, not used with a `group`; `shares` and
    `group` are as in `hierarchical`.
    """
    networks = weights.networks
    states = weights.questions(model.backbone, [row.prompt[-weights.window :] for row in rows], model.pad_id)
    if group is not None or seen is None:
        return hierarchical(networks, states, bank, group or max(2, len(bank)), shares)
    return networks.aggregate(states, bank, seen, shares)


def answer_logits(
    model: Model, weights: MacWeights, batch: Batch, found: Tensor, shown: Mapping[int, int] | None = None
) -> Tensor:
    """(B, n, V) logits at the places of `targets`, with what was found (B, T, D).

    A prefix stands behind the opening. A LoRA acts in the last FFN: the passes in front of it need no gradients.
    """
    backbone, rows, flat = model.backbone, batch.asked, weights.networks.modulate(found)
    texts, spared, count = (
        [],
        0 if isinstance(weights.form, Lora) else batch.opening.spared,
        max(len(r.answer) for r in rows),
    )
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
            return backbone.logits(x[:, -count:].contiguous(), residual[:, -count:])
    front = in_front(backbone, batch.opening, weights.window)
    seen = torch.ones(len(rows), weights.tokens, dtype=torch.long)
    behind = with_opening(backbone, front, prefix(backbone, weights.form.of(flat)).layers, seen)
    return logits_behind(backbone, texts, model.pad_id, count, *behind, weights.end)


def _pointed(shares: Sequence[Tensor], own: Tensor, group: int) -> Tensor:
    """(B,) mean over the levels of a hierarchy: the logarithm of the attention to the own documents (B, K) in nats.

    At each level it is that within the groups that have any, and at the next one these groups are the own ones.
    """
    total = torch.zeros(len(own), device=own.device)
    for share in shares:
        groups = torch.stack([part.any(1) for part in torch.split(own, group, 1)], 1)
        attention = (share * own).sum(1) / groups.sum(1).clamp_min(1)
        total, own = total + attention.clamp_min(_LEAST).log(), groups
    return total / len(shares)


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
