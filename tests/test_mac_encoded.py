"""MAC's networks learn from documents that were encoded once, as they would end to end with LoRA and tokens fixed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from gists import parts_of, saved_gist
from memograft import Engine
from memograft.errors import SettingsError
from memograft.memory.gist import folder as gist_folder
from memograft.memory.gist.data import Batches, Sample
from memograft.memory.mac import folder
from memograft.memory.mac.encoded import encode, loss_of_encoded
from memograft.memory.mac.loss import Drawn, bank_of, loss_of
from memograft.memory.mac.train import MacTraining, train
from test_engine import FACTS
from test_mac_reference import model_of
from test_mac_start import batches, begun

SAMPLES = [Sample((fact,), f"What is said about {fact.split()[1]}?", fact[:12]) for fact in FACTS]
SETTINGS: dict[str, Any] = {"tokens": 3, "window": 64, "steps": 6, "groups": 2, "rank": 4, "blocks": 2}


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
@torch.no_grad()
def test_the_loss_is_that_of_training_end_to_end(family: str) -> None:
    backbone, weights, gist = begun(family)
    model, (batch,) = model_of(backbone), batches(1, 0)
    encoded = encode(model, weights, gist, [batch])
    alone = [n % 3 == 0 for n in range(len(batch.asked))]
    bank = bank_of(model, weights, batch.documents, [False] * len(batch.documents))
    whole, answers = (
        loss_of(model, weights, batch, bank, Drawn(alone), teacher=gist, **terms)
        for terms in ({"imitate": 2.0, "point": 0.5}, {})
    )
    expected = (whole - answers) / sum(len(row.answer) for row in batch.asked)
    rows = range(len(batch.asked))
    for order in (range(8), (5, 2, 0, 1, 7, 6, 4, 3)):
        mine = loss_of_encoded(weights, encoded, rows, order, alone, imitate=2.0, point=0.5)
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_bank_has_the_documents_of_its_questions_and_others() -> None:
    backbone, weights, gist = begun("llama")
    encoded = encode(model_of(backbone), weights, gist, batches(3, 0))
    assert encoded.documents.shape[:2] == encoded.gists.shape[:2] == (24, 3)
    for seed in range(20):
        rows, bank = encoded.drawn(random.Random(seed), 4, 2, 10)
        assert len(rows) == 4
        assert {n for row in rows for n in encoded.own[row]} == set(bank[:4])
        assert len(bank) == len(set(bank)) == 14
    rows, bank = encoded.drawn(random.Random(0), 100, 2, 100)
    assert sorted(bank) == sorted(rows) == list(range(24))


@pytest.fixture
def gist(engine: Engine, tmp_path: Path) -> Path:
    return saved_gist(engine, tmp_path / "gist", k=3, window=64)


def test_only_the_networks_learn(engine: Engine, gist: Path, tmp_path: Path) -> None:
    model = parts_of(engine)
    settings = MacTraining(imitate=1.0, point=0.5, alone=0.0, encoded=10, others=2, **SETTINGS | {"steps": 60})
    before = {name: value.clone() for name, value in model.backbone.model.state_dict().items()}
    _, state = train(model, SAMPLES, settings, tmp_path / "mac", held_out=SAMPLES, start=gist, every=30, progress=False)
    assert sum(state.losses[-10:]) < 0.8 * sum(state.losses[:10])
    assert [set(score) >= {"bank_loss", "own_loss"} for score in state.scores] == [True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.model.state_dict().items())
    teacher, read = gist_folder.read(gist, model.backbone), folder.read(tmp_path / "mac", model.backbone)
    for name, value in teacher.adapter.named.items():
        assert torch.equal(value, read.named[name])
    assert torch.equal(teacher.embeddings, read.networks.document_tokens)
    assert torch.equal(teacher.embeddings, read.networks.question_tokens)
    (batch,) = Batches(SAMPLES, model.prompts, settings.window, 1, 2, 0).once(100, 100)
    texts = [*batch.documents, *(row.prompt[-settings.window :] for row in batch.asked)]
    assert state.tokens == sum(len(ids) + 3 for ids in texts), "each text is read once"


def test_an_interrupted_run_continues(engine: Engine, gist: Path, tmp_path: Path) -> None:
    model = parts_of(engine)
    settings = MacTraining(imitate=1.0, point=0.5, encoded=4, others=1, **SETTINGS)
    whole, state = train(model, SAMPLES, settings, tmp_path / "whole", start=gist, progress=False)
    train(model, SAMPLES, settings, tmp_path / "parts", start=gist, stop_at=2, progress=False)
    parts, again = train(model, SAMPLES, settings, tmp_path / "parts", start=gist, progress=False)
    assert (again.losses, again.tokens) == (state.losses, state.tokens)
    assert all(torch.equal(value, parts.named[name]) for name, value in whole.named.items())


def test_settings() -> None:
    with pytest.raises(SettingsError, match=r"`encoded` needs `imitate`, got 0.0; set it to 1"):
        MacTraining(encoded=10)
    with pytest.raises(SettingsError, match=r"no model reads a page .*, got `shown` 0.5; leave it out"):
        MacTraining(encoded=10, imitate=1.0, shown=0.5)
    with pytest.raises(SettingsError, match=r"no document has gradients, got `stop_gradient` 0.5; leave it out"):
        MacTraining(encoded=10, imitate=1.0, stop_gradient=0.5)
    with pytest.raises(SettingsError, match=r"`encoded` must be at least 0, got -1"):
        MacTraining(encoded=-1, imitate=1.0)
