"""What a MAC's training begins with: another MAC, or a gist whose keys and values the networks are made to give."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from memograft.errors import SettingsError
from memograft.memory.base import Model
from memograft.memory.gist import folder as gist_folder
from memograft.memory.gist.compress import GistWeights, compressed
from memograft.memory.gist.data import Batch
from memograft.memory.mac import folder as mac_folder
from memograft.memory.mac.networks import CrossAttention
from memograft.memory.mac.weights import MacWeights

__all__ = ["begin_with", "fit_to_gist"]

_RIDGE, _SHARED = 0.1, 0.5  # of the regression and of the attention, relative to the mean diagonal
# States of a standard deviation of 1 are multiplied by _NEAR and reach GELU around _AT, where it is nearly linear. Far
# from 0 it is more so, but then all outputs of the first layer are large and of one sign, and the first steps of
# training shift what the second makes of them by more than the states vary.
_NEAR, _AT = 0.5, 0.5
_STEP = 1e-2  # of a numerical derivative
_LEAST = 1e-6  # standard deviation of a number, and ridge: all documents may be alike


@torch.no_grad()
def begin_with(start: Path, weights: MacWeights, model: Model) -> tuple[str, GistWeights | None]:
    """Copy the weights of a MAC, or LoRA and tokens of a gist. Returns its id, and the gist if it can be imitated.

    Raises:
        SettingsError: it is of another model, or has other sizes.
        MemoryFormatError: it is damaged.
    """
    is_mac = (start / "mac.json").exists()
    found: mac_folder.MacAbout | gist_folder.GistAbout = (mac_folder if is_mac else gist_folder).about(start)
    if found.fingerprint != model.fingerprint:
        raise SettingsError(
            f"`start` must be of this model (fingerprint {model.fingerprint}), got one of {found.fingerprint} in "
            f"{start}; leave it out"
        )
    gist: GistWeights | None = None
    left: tuple[str, ...] = ()
    if is_mac:
        before = mac_folder.read(start, model.backbone)
        heads, own = before.networks.heads, weights.networks.heads
        if heads != own:
            raise SettingsError(
                f"`start` must have the same `heads`, and {start} has {heads}, got {own}; set it to {heads}"
            )
        known = before.named
        if before.modulation != weights.modulation:
            left = ("start", "modulation.weight")  # as they are
    else:
        gist = gist_folder.read(start, model.backbone)
        known = gist.adapter.named | dict.fromkeys(("document_tokens", "question_tokens"), gist.embeddings)
    for name, parameter in weights.named.items():
        if name in left:
            continue
        if name in known and name in ("document_tokens", "question_tokens"):
            count = min(len(known[name]), len(parameter))
            parameter[:count] = known[name][:count]
        elif name in known and known[name].shape == parameter.shape:
            parameter.copy_(known[name])
        elif name in known or is_mac:
            raise SettingsError(
                f"`start` must have the same `rank`, `tokens` and `blocks`, and {start} has others at {name}; set its "
                "values"
            )
    same = gist is not None and (gist.tokens, gist.window) == (weights.tokens, weights.window)
    return found.id, gist if same else None


@torch.no_grad()
def fit_to_gist(model: Model, weights: MacWeights, teacher: GistWeights, batches: Iterable[Batch]) -> None:
    """Make the networks give a document's gist to a question about it, as well as a linear map can. Ours.

    The gist's last states, which its LoRA and tokens give, already say much of its keys and values in all layers. So

    1. the heads centre and scale each number of the states, and change little else;
    2. the blocks attend by x^T Cxx^-1 Cxy Cyy^-1 y, for states x of a question and y of a document and their
       covariances over pairs of a question and its own document. If they are Gaussian, this is to first order how much
       likelier y is behind x than behind another question (its logarithm). What is found are the states themselves;
    3. `modulation` and `start` are the ridge regression from phi* to the gist's keys and values, for each question with
       its own document alone.

    Without this, SmolLM2 does not use documents after 50 steps: an answer costs 3.40 nats a token, whichever document
    it is asked about (benchmarks/LOG.md).
    """
    backbone, networks = model.backbone, weights.networks
    documents, questions = list[Tensor](), list[Tensor]()  # states of each question, and of its document
    gists = list[tuple[Tensor, list[int]]]()  # and which one is a question's
    for batch in batches:
        own = [row.gists[0] for row in batch.asked]
        texts = [row.prompt[-weights.window :] for row in batch.asked]
        layers = compressed(backbone, teacher, batch.documents, model.pad_id).layers
        documents.append(weights.last_states(backbone, networks.document_tokens, batch.documents, model.pad_id)[own])
        questions.append(weights.last_states(backbone, networks.question_tokens, texts, model.pad_id))
        gists.append((_flat(layers, backbone.device), own))
    _standardise(networks.document_head, torch.cat(documents))
    _standardise(networks.question_head, torch.cat(questions))
    one = torch.eye(backbone.width, device=backbone.device)
    asking = torch.cat([layer_norm(networks.question_head(states), one.shape[:1]) for states in questions])
    asked_of = torch.cat([layer_norm(networks.amortise(states), one.shape[:1]) for states in documents])
    matching = _matching(asking, asked_of)
    for block in networks.blocks:
        assert isinstance(block, CrossAttention)
        _set(block.query, (len(one) / block.heads) ** 0.5 * matching.T)  # attention divides by this root
        _set(block.key_value, torch.cat([one, one]))
        _set(block.out, one)
        _set(block.feed_forward[2], one.new_zeros(len(one), 4 * len(one)))

    found = [
        networks.aggregate(asked, networks.amortise(own)[:, None])
        for asked, own in zip(questions, documents, strict=True)
    ]
    count, mean = sum(map(len, found)), torch.cat(found).mean(0)
    gram, cross = torch.zeros_like(one), torch.zeros_like(networks.modulation.weight)
    goal = torch.zeros_like(networks.start)  # mean
    for (made, own), each in zip(gists, found, strict=True):
        wanted, apart = made[own].float(), (each - mean).flatten(0, 1)
        gram += apart.T @ apart
        cross += wanted.flatten(0, 1).T @ apart
        goal += wanted.sum(0) / count
    gram += (_RIDGE * gram.diagonal().mean() + _LEAST) * one
    networks.modulation.weight.copy_(torch.linalg.solve(gram, cross, left=False))
    networks.start.copy_(goal - networks.modulation(mean))


def _matching(x: Tensor, y: Tensor) -> Tensor:
    """Cxx^-1 Cxy Cyy^-1 (D, D) of pairs of states (Q, T, D), of which each token has its own mean."""
    x, y = ((states - states.mean(0)).flatten(0, 1) for states in (x, y))
    inner, outer = (states.T @ states / len(states) for states in (x, y))
    for own in (inner, outer):
        own += (_SHARED * own.diagonal().mean() + _LEAST) * torch.eye(len(own), device=own.device)
    matching: Tensor = torch.linalg.solve(inner, torch.linalg.solve(outer, x.T @ y / len(x), left=False))
    return matching


def _standardise(head: nn.Sequential, states: Tensor) -> None:
    """Let a two-layer network subtract the mean of states (K, T, D) and divide by their standard deviation, nearly."""
    mean, deviation = states.mean((0, 1)), states.std((0, 1), correction=0)
    deviation = torch.where(deviation < _LEAST, 1.0, deviation)  # as it is, if all states have the same number
    at = torch.tensor(_AT, device=mean.device)
    slope = (gelu(at + _STEP) - gelu(at - _STEP)) / (2 * _STEP)
    _set(head[0], torch.diag(_NEAR / deviation), _AT - _NEAR * mean / deviation)
    back = 1 / (_NEAR * slope)
    _set(head[2], back * torch.eye(len(mean), device=mean.device), (-gelu(at) * back).expand(len(mean)))


def _set(linear: nn.Module, weight: Tensor, bias: Tensor | None = None) -> None:
    """Copy a weight and a bias, 0 if None, into a linear map."""
    assert isinstance(linear, nn.Linear)
    linear.weight.copy_(weight)
    linear.bias.copy_(torch.zeros_like(linear.bias) if bias is None else bias)


def _flat(layers: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> Tensor:
    """Keys and values of each layer (K, H, T, d) -> (K, T, size), in the order of `Prefix.of`."""
    return torch.cat([t.transpose(1, 2).flatten(2).to(device) for pair in layers for t in pair], 2)
