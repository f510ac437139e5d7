"""The recipe of tiny: held-out facts are held out, and interrupted training gives the same result."""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "tiny"


@pytest.fixture(scope="module", autouse=True)
def _recipe_on_the_path() -> object:
    sys.path.insert(0, str(RECIPE))
    yield
    sys.path.remove(str(RECIPE))


def test_training_never_names_a_held_out_entity() -> None:
    from data import MIXES, example, render
    from language import fresh

    rng = random.Random(0)
    mixes = [{kind: share for kind, share in mix.items() if kind != "repeat"} for mix in MIXES]  # random words
    text = "\n".join(t for mix in mixes for _ in range(400) for _, t in render(example(rng, mix)))
    named = set(re.findall(r"(?=\b([A-Z][a-z]+ [A-Z][a-z]+)\b)", text))  # overlapping matches, to find all
    seen, held_out = ({fresh("person", rng, held_out=h) for _ in range(20_000)} for h in (False, True))
    assert not named & held_out
    assert named & seen, "names this short repeat, so the search above can find some"


@pytest.mark.parametrize("which", ["contradicts", "agrees", "unseen", "elsewhere"])
def test_sets_are_what_they_say(which: str) -> None:
    from sets import items

    for item in items(which, 60, "a-test"):
        pages = " ".join(item.documents)
        assert (item.right in pages) or which == "elsewhere"
        assert (item.right == item.belief) == (which in ("agrees", "elsewhere"))
        assert item.right in item.answer
    assert items(which, 3, "a-test") == items(which, 5, "a-test")[:3]


def test_splits_share_no_item() -> None:
    from sets import items

    tune, test = ({(i.question, i.documents) for i in items("unseen", 100, split)} for split in ("tune", "test"))
    assert not tune & test


def test_conversations_in_a_row_do_not_see_each_other() -> None:
    from train import mask, positions

    owner = torch.tensor([[0, 0, 1, 1, 1, -1]])
    assert positions(owner).tolist() == [[0, 1, 0, 1, 2, 0]]
    assert mask(owner)[0, 0].int().tolist()[:3] == [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]]


def test_an_interrupted_training_ends_like_one_that_was_not(tmp_path: Path) -> None:
    from train import Preset, train

    small = Preset(
        width=32, ffn=48, layers=2, heads=4, vocab=400, window=128, rows=2, length=96, steps=6, phases=(2, 4, 5),
        decay=0.3, matrix_rate=4e-3, other_rate=4e-3, warmup=2,
    )  # fmt: skip

    def run(folder: Path, stop_at: int) -> None:
        train(small, 0, folder, every=3, compile_model=False, real=None, stop_at=stop_at, scored=32)

    run(tmp_path / "whole", 6)
    (tmp_path / "parts").mkdir()
    shutil.copy(tmp_path / "whole" / "bpe.json", tmp_path / "parts")
    run(tmp_path / "parts", 3)
    assert not (tmp_path / "parts" / "model").exists()
    run(tmp_path / "parts", 6)
    whole, parts = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=2e-3, atol=1e-4)  # saved in half precision
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert steps == [3, 6]


def test_real_text_can_be_mixed_in(tmp_path: Path) -> None:
    import text

    (tmp_path / "leads.jsonl").write_text(json.dumps({"title": "Bergen", "text": "Bergen is a town."}) + "\n")
    squad = {
        "data": [
            {"paragraphs": [{"context": "A page.", "qas": [{"question": "What?", "answers": [{"text": "page"}]}]}]}
        ]
    }
    (tmp_path / "squad.json").write_text(json.dumps(squad))
    found = text.load([tmp_path / "leads.jsonl", tmp_path / "squad.json"])
    made = [text.example(found, random.Random(n)) for n in range(8)]
    assert {tuple(m.documents) for m in made} == {(), ("A page.",)}
