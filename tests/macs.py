"""Untrained MACs whose numbers are random, for tests that need one but no training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gists import DOCUMENTS, parts_of
from memograft import Engine, MacBank
from memograft.memory.mac import folder
from memograft.memory.mac.weights import MacWeights, fresh
from memograft.model.backbone import Backbone
from test_engine import FACTS

MORE = [f"{fact} That is number {n}." for n, fact in enumerate(FACTS * 2)]


def random_mac(backbone: Backbone, *, tokens: int = 3, window: int = 64, **options: Any) -> MacWeights:
    """A LoRA whose change is about a tenth of the weights, and modulations that differ clearly."""
    settings = {"rank": 4, "blocks": 2, "heads": 8, "seed": 5, "on_documents": True, **options}
    made = fresh(backbone, DOCUMENTS[1], tokens=tokens, window=window, **settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for b in made.adapter.lora_b.values():
            b.copy_(0.1 * torch.randn(b.shape, generator=generator))
        made.networks.modulation.weight.mul_(10)
        if made.modulation == "lora":
            made.networks.start.copy_(0.1 * torch.randn(made.networks.start.shape, generator=generator))
            made.networks.modulation.weight.copy_(
                0.1 * torch.randn(made.networks.modulation.weight.shape, generator=generator)
            )
        for head in (made.networks.document_head, made.networks.question_head):
            for layer in (head[0], head[2]):
                layer.weight.mul_(5)
    return made


def saved_mac(engine: Engine, path: Path, **options: Any) -> Path:
    """The folder of a random MAC for the engine's model."""
    model = parts_of(engine)
    weights = random_mac(model.backbone, **options)
    folder.write(path, weights, model.backbone, model.fingerprint, {"steps": 0})
    return path


def bank_of(engine: Engine, path: Path, texts: Any = FACTS, **options: Any) -> MacBank:
    bank = MacBank(path / "bank", saved_mac(engine, path / "mac", **options))
    bank.add(engine, texts, progress=False)
    return bank
