"""The ways to answer: each asks what its name says; context-aware decoding against its formula."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, replace

import pytest
import torch

from memograft import Document, Engine, FastMem, Sampling
from memograft.errors import SettingsError
from memograft.evaluation.controls import Restricted, context_aware
from memograft.evaluation.items import Item, world
from memograft.evaluation.methods import METHODS, from_settings
from memograft.memory.handle import MemoryHandle

SHORT = Sampling(max_new_tokens=4)


@pytest.fixture(scope="module")
def tiny() -> Iterator[Engine]:
    with Engine.from_pretrained("tiny") as engine:
        yield engine


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return [item for item in world("tune", 3) if item.set == "contradicts"]


def test_what_each_method_asks(tiny: Engine, items: list[Item]) -> None:
    asked = {name: method.request(tiny, items, 1, SHORT) for name, method in METHODS.items()}
    assert {name for name, r in asked.items() if not r.documents} == {"no document"}
    assert all(r.documents == items[1].documents for name, r in asked.items() if name != "no document")
    assert {name for name, r in asked.items() if r.processors} == {"plain, restricted", "CAD"}
    memories = {name: r.memory for name, r in asked.items() if r.memory}
    wrong = memories.pop("irrelevant document memorized")
    assert isinstance(wrong, MemoryHandle)
    assert (wrong.documents, wrong.settings) == (items[2].documents, FastMem())
    assert memories == {
        "memorized": FastMem(),
        "memorized, support gate": FastMem(gate="support"),
        "memorized, contrast 0.5": FastMem(contrast=0.5),
        "memorized, all documents": FastMem(relevance=None, conflicts=None),
        "memorized, all documents, support gate": FastMem(relevance=None, conflicts=None, gate="support"),
        "paper's recipe": FastMem.paper(),
        "paper's recipe, lr 1e-3": FastMem.paper(learning_rate=1e-3),
    }
    assert all(tiny.answer(asked[name]).text for name in ("plain, restricted", "irrelevant document memorized"))


def test_context_aware_decoding_is_its_formula(tiny: Engine, items: list[Item]) -> None:
    """(1 + alpha) log p(with documents) - alpha log p(without), up to a constant of the row, token after token."""
    item, alpha = items[0], 0.5
    processor = context_aware(tiny, item, alpha)
    turn = [{"role": "user", "content": item.question}]
    prompts = tiny._prompts
    full, bare = (list(prompts.build(turn, docs).ids) for docs in (item.documents, ()))
    for _ in range(4):
        with torch.inference_mode():
            ours, theirs = (tiny.model(torch.tensor([ids])).logits[:, -1] for ids in (full, bare))
            given = processor(torch.tensor([full]), ours)
        wanted = (1 + alpha) * ours.log_softmax(-1) - alpha * theirs.log_softmax(-1)
        shift = given - wanted
        assert float((shift - shift.mean()).abs().max()) < 1e-4
        token = int(given.argmax())
        full.append(token)
        bare.append(token)
    answer = tiny.answer(METHODS["CAD"].request(tiny, items, 0, SHORT))
    assert list(answer.token_ids[:4]) == full[-4:]


def test_restricted_says_only_what_stands_there(tiny: Engine, items: list[Item]) -> None:
    item = replace(items[0], documents=(Document("Zebra."),), frame="It is\nof")
    scores = torch.randn(1, tiny.model.config.vocab_size)
    kept = Restricted(tiny, item)(torch.zeros(1, 1, dtype=torch.long), scores)
    allowed = kept[0].isfinite()
    assert torch.equal(kept[0, allowed], scores[0, allowed])
    there = {i for t in ("Zebra.", " Zebra.", " of", item.question) for i in tiny.tokenizer(t)["input_ids"]}
    assert allowed[sorted(there)].all()
    assert allowed[tiny.tokenizer.eos_token_id]
    absent = set(tiny.tokenizer(" Berlin")["input_ids"]) - there
    assert absent
    assert not allowed[sorted(absent)].any()


def test_the_irrelevant_document_is_never_ones_own(tiny: Engine, items: list[Item]) -> None:
    method = METHODS["irrelevant document memorized"]
    twins = [items[0], replace(items[0], id="twin"), items[1]]
    handle = method.request(tiny, twins, 0, SHORT).memory
    assert isinstance(handle, MemoryHandle)
    assert handle.documents == items[1].documents
    said = "got none in the set 'contradicts' that differ from those of item tune-contradicts-0; ask more questions"
    with pytest.raises(SettingsError, match=re.escape(said)):
        method.request(tiny, twins[:2], 0, SHORT)


def test_settings_from_a_string() -> None:
    def made(text: str) -> FastMem:
        memory = from_settings(text).memory
        assert memory is not None
        return memory()

    assert made("steps=4") == FastMem(steps=4)
    assert made("steps = 4,learning_rate=1e-2, gate=support , shortlist=None, betas=(0.8, 0.9)") == FastMem(
        steps=4, learning_rate=1e-2, gate="support", shortlist=None, betas=(0.8, 0.9)
    )
    assert made("paper, learning_rate=1e-3") == FastMem.paper(learning_rate=1e-3)
    assert made("paper") == FastMem.paper()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "settings must be written as name=value, got '' in ''; try steps=4"),
        ("steps", "settings must be written as name=value, got 'steps'"),
        ("steps=", "settings must be written as name=value, got 'steps='"),
        ("stepz=4", "`stepz` is not a setting of FastMem, whose settings are steps, learning_rate,"),
        ("steps=4,steps=5", "`steps` must be set once, got it twice in 'steps=4,steps=5'; leave one out"),
        ("steps=4.5", "`steps` must be a whole number of at least 1, got 4.5"),
        ("gate=nonsense", "`gate` must be one of"),
        ("betas=1", "settings must have values of the right kind, got 'betas=1'"),
    ],
)
def test_settings_that_are_wrong(text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        from_settings(text)


def test_the_settings_of_a_method_spell_out_the_defaults() -> None:
    plain, memorized = METHODS["plain"].settings(), METHODS["memorized"].settings()
    assert plain == {"documents": True, "memory": None, "memorizes": None, "processor": None}
    assert memorized["memory"] == asdict(FastMem())
    assert METHODS["CAD"].settings() == plain | {"processor": "context_aware", "alpha": 0.5}
    assert len({json.dumps(m.settings()) for m in METHODS.values()}) == len(METHODS)
