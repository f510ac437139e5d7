"""Untrained gists whose LoRA is random, for tests that need a gist but no training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from memograft import Engine
from memograft.memory.base import Model
from memograft.memory.gist import folder
from memograft.memory.gist.compress import GistWeights, Opening
from memograft.memory.gist.data import Batch
from memograft.memory.gist.train import GistTraining, fresh
from memograft.model.adapter import Adapter
from memograft.model.backbone import Backbone

DOCUMENTS = ((1, 17, 40, 41, 99, 120), (1, 17, 250, 33, 77, 201, 202, 5, 61, 90), (1, 88, 12))


def random_gist(backbone: Backbone, *, k: int = 3, window: int = 32, on_documents: bool = False) -> GistWeights:
    """Embeddings of random tokens, and a LoRA whose change is about a tenth of the weights."""
    settings = GistTraining(tokens=k, window=window, rank=4, on_documents=on_documents, seed=5)
    made = fresh(backbone, settings, Batch(DOCUMENTS[:1], (), Opening(DOCUMENTS[0][:2], 2)), 0)
    generator = torch.Generator().manual_seed(1)
    b = {n: (0.1 * torch.randn(t.shape, generator=generator)).requires_grad_() for n, t in made.adapter.lora_b.items()}
    return GistWeights(made.embeddings, Adapter(made.adapter.lora_a, b), window, on_documents)


def parts_of(engine: Engine) -> Model:
    """The parts of an engine's model, which is not used by others meanwhile."""
    backbone, prompts = engine.with_model(lambda backbone, prompts: (backbone, prompts))
    return Model(backbone, prompts, 0, engine.fingerprint)


def saved_gist(engine: Engine, path: Path, **settings: Any) -> Path:
    """The folder of a random gist for the engine's model."""
    model = parts_of(engine)
    folder.write(path, random_gist(model.backbone, **settings), model.backbone, model.fingerprint, {"steps": 0})
    return path


def closest(one: Sequence[Any], other: Sequence[Any]) -> float:
    """The largest difference between tensors of two lists of pairs."""
    pairs = zip(one, other, strict=True)
    return max(float((a - b).abs().max()) for left, right in pairs for a, b in zip(left, right, strict=True))
