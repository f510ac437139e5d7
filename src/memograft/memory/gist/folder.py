"""Trained gists on disk; see `memory/trained.py`. gist.safetensors has the embeddings (k, D).

The folder "tiny" is the bundled gist of the bundled model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from memograft.memory.gist.compress import GistWeights, maps
from memograft.memory.trained import Kind, damaged
from memograft.model.backbone import Backbone
from memograft.storage.disk import Findings, JsonObject

__all__ = ["GistAbout", "about", "inspected", "read", "write"]

# In format 2, the whole prompt came behind the gists, and only the first token in front of them.
_KIND = Kind("gist", 3, {"tiny": "models/tiny-gist"})


@dataclass(frozen=True)
class GistAbout:
    """The content of gist.json.

    Attributes:
        id: its checksum, which depends on all files.
        fingerprint: of the model that it was trained for.
        tokens: k.
        window: W.
        on_documents: see `GistWeights`.
        training: settings, steps and tokens seen.
        known: questions of the training that the model answers without their documents, and the answers; see
            `memograft.memory.gist.refine`. A folder of version 0.2 has none.
    """

    id: str
    fingerprint: str
    tokens: int
    window: int
    on_documents: bool
    training: JsonObject
    known: tuple[tuple[str, str], ...] = ()


def write(
    path: Path,
    weights: GistWeights,
    backbone: Backbone,
    fingerprint: str,
    training: JsonObject,
    known: Sequence[tuple[str, str]] = (),
) -> None:
    """Write the folder; see `Kind.write`."""
    what = {"fingerprint": fingerprint, "tokens": weights.tokens, "window": weights.window}
    what |= {"on_documents": weights.on_documents, "training": training, "known": known}
    _KIND.write(path, weights.adapter, {"embeddings": weights.embeddings}, backbone, maps(backbone), what)


def about(path: Path) -> GistAbout:
    """The content of a folder's gist.json; see `Kind.about`."""
    what = _KIND.about(path)
    known = tuple((question, answer) for question, answer in what.get("known", ()))
    try:
        names = ("id", "fingerprint", "tokens", "window", "on_documents", "training")
        return replace(GistAbout(*(what[name] for name in names)), known=known)
    except KeyError as e:
        raise damaged(path / _KIND.file, e) from e


def read(path: Path, backbone: Backbone) -> GistWeights:
    """Read the weights for a model; see `Kind.read`."""
    adapter, tensors, _ = _KIND.read(path, backbone, maps(backbone))
    found = about(path)
    shape = (found.tokens, backbone.width)
    embeddings = tensors.get("embeddings")
    if embeddings is None or tuple(embeddings.shape) != shape:
        raise damaged(path / _KIND.tensors, f"embeddings must be of shape {shape}")
    return GistWeights(embeddings, adapter, found.window, found.on_documents)


def inspected(path: Path) -> Findings:
    """Check a gist's folder for damage."""
    return _KIND.inspected(path)
