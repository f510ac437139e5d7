"""Trained MACs on disk; see `memory/trained.py`. mac.safetensors has the networks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from memograft.memory.gist.compress import maps
from memograft.memory.mac.networks import Networks
from memograft.memory.mac.weights import MODULATIONS, MacWeights, form_of
from memograft.memory.trained import Kind, damaged
from memograft.model.backbone import Backbone
from memograft.storage.disk import Findings, JsonObject

__all__ = ["MacAbout", "about", "files", "inspected", "read", "write"]

_KIND = Kind("mac", 3)


@dataclass(frozen=True)
class MacAbout:
    """The content of mac.json.

    Attributes:
        id: its checksum, which depends on all files.
        fingerprint: of the model that it was trained for.
        tokens: T.
        window: W.
        width: D.
        blocks: of the aggregation network; `heads` of its attention.
        modulation: "prefix" or "lora", what is found in a bank becomes.
        on_documents: see `MacWeights`.
        training: settings, steps and tokens seen.
    """

    id: str
    fingerprint: str
    tokens: int
    window: int
    width: int
    blocks: int
    heads: int
    modulation: str
    on_documents: bool
    training: JsonObject


def write(path: Path, weights: MacWeights, backbone: Backbone, fingerprint: str, training: JsonObject) -> None:
    """Write the folder; see `Kind.write`."""
    what = {"fingerprint": fingerprint, "tokens": weights.tokens, "window": weights.window}
    what |= {"width": backbone.width, "modulation": weights.modulation}
    what |= {"blocks": len(weights.networks.blocks), "heads": weights.networks.heads}
    what |= {"on_documents": weights.on_documents, "training": training}
    _KIND.write(path, weights.adapter, weights.networks.state_dict(), backbone, maps(backbone), what)


def about(path: Path) -> MacAbout:
    """The content of a folder's mac.json; see `Kind.about`."""
    what = _KIND.about(path)
    names = ("id", "fingerprint", "tokens", "window", "width", "blocks", "heads", "modulation", "on_documents")
    try:
        found = MacAbout(*(what[name] for name in (*names, "training")))
    except KeyError as e:
        raise damaged(path / _KIND.file, e) from e
    if found.modulation not in MODULATIONS:
        raise damaged(path / _KIND.file, f"modulation {found.modulation!r}")
    return found


def read(path: Path, backbone: Backbone) -> MacWeights:
    """Read the weights for a model; see `Kind.read`."""
    adapter, tensors, _ = _KIND.read(path, backbone, maps(backbone))
    what = about(path)
    form = form_of(backbone, what.modulation)
    with torch.device("meta"):  # no random numbers, which would change the state of the process
        networks = Networks(backbone.width, what.tokens, form, what.blocks, what.heads)
    try:
        networks.load_state_dict(tensors, assign=True)  # strict: every tensor, and no other
    except RuntimeError as e:
        raise damaged(path / _KIND.tensors, e) from e
    return MacWeights(networks, form, adapter, what.window, what.on_documents)


def files(path: Path) -> list[Path]:
    """The files of a trained MAC."""
    return [path / name for name in (*_KIND.about(path)["files"], _KIND.file)]


def inspected(path: Path) -> Findings:
    """Check a MAC's folder for damage."""
    return _KIND.inspected(path)
