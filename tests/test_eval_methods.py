"""The methods: each makes the request that its name describes; context-aware decoding matches its formula."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest
import torch

from memograft import Compacted, Document, Engine, FastMem, Rtd, Sampling
from memograft.errors import SettingsError
from memograft.evaluation.controls import Restricted
from memograft.evaluation.items import Item, world
from memograft.evaluation.lessons import Lessons
from memograft.evaluation.methods import METHODS, from_settings
from memograft.memory.handle import MemoryHandle

SHORT = Sampling(max_new_tokens=4)


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return [item for item in world("tune", 3) if item.set == "contradicts"]


@pytest.fixture(scope="module")
def lessons(tiny: Engine, items: list[Item]) -> Iterator[Lessons]:
    """Examples of two sets, including the asked items."""
    with closing(Lessons(tiny, [i for i in world("tune", 7) if i.set in ("agrees", "contradicts")], items)) as lessons:
        yield lessons


def test_what_each_method_asks(tiny: Engine, items: list[Item], lessons: Lessons) -> None:
    asked = {name: method.request(tiny, items, 1, SHORT, lessons) for name, method in METHODS.items()}
    assert {name for name, r in asked.items() if not r.documents} == {"no document"}
    assert all(r.documents == items[1].documents for name, r in asked.items() if name != "no document")
    assert {name for name, r in asked.items() if r.processors} == {
        "plain, restricted",
        "CAD",
        "memorized, CAD",
        "AdaCAD",
        "memorized, AdaCAD",
        "DoLa",
        "memorized, DoLa",
        "RTD",
    }
    assert {name for name, r in asked.items() if len(r.messages) > 1} == {"few-shot"}
    question = items[1].question
    others = {name: r for name, r in asked.items() if r.messages[-1]["content"] != question}
    assert others.keys() == {"only from the documents"}
    (instructed,) = others.values()
    assert instructed.messages[0]["content"].startswith("Answer only from the documents, even where")
    assert instructed.messages[0]["content"].endswith(f"\n\n{question}")
    assert instructed.query == question, "documents are judged by the question alone"
    memories = {name: r.memory for name, r in asked.items() if r.memory}
    wrong = memories.pop("irrelevant document memorized")
    assert isinstance(wrong, MemoryHandle)
    assert (wrong.documents, wrong.settings) == (items[2].documents, tiny.defaults)
    assert memories == {
        "memorized": FastMem(),
        "memorized, support gate": FastMem(gate="support"),
        "memorized, CAD": FastMem(),
        "memorized, contrast 0.5": FastMem(contrast=0.5),
        "memorized, contrast adaptive": FastMem(contrast="adaptive"),
        "memorized, AdaCAD": FastMem(),
        "memorized, DoLa": FastMem(),
        "memorized, faithful": FastMem.faithful(),
        "compacted 4x": Compacted(ratio=4),
        "compacted 10x": Compacted(ratio=10),
        "memorized, all documents": FastMem(relevance=None, conflicts=None),
        "memorized, all documents, support gate": FastMem(relevance=None, conflicts=None, gate="support"),
        "paper's recipe": FastMem.paper(),
        "paper's recipe, lr 1e-4": FastMem.paper(learning_rate=1e-4),
        "paper's recipe, lr 1e-3": FastMem.paper(learning_rate=1e-3),
    }
    assert all(tiny.answer(asked[name]).text for name in ("plain, restricted", "irrelevant document memorized"))


def test_few_shot_shows_other_questions_first_those_of_the_set(
    tiny: Engine, items: list[Item], lessons: Lessons
) -> None:
    *shown, last = METHODS["few-shot"].request(tiny, items, 0, SHORT, lessons).messages
    there = [item for item in world("tune", 7) if item.set == "contradicts"]
    assert [m["role"] for m in shown] == ["user", "assistant"] * 3
    for example, user, assistant in zip(there[3:6], shown[::2], shown[1::2], strict=True):
        pages = "\n\n".join(f"[{n}] {d.text}" for n, d in enumerate(example.documents, 1))
        assert user["content"] == f"Documents:\n\n{pages}\n\nQuestion: {example.question}", "as a prompt has them"
        assert assistant["content"] == example.answers[0]
    assert last["content"] == items[0].question
    assert len(lessons.turns(items[0], 10)) == 20, "then those of other sets"
    assert lessons.turns(replace(items[0], documents=there[3].documents), 1)[1]["content"] == there[4].answers[0]
    assert not lessons.turns(replace(items[0], task="summary"), 3)


def test_examples_teach_nothing_that_is_asked(tiny: Engine, items: list[Item]) -> None:
    first, second, third = items
    bare = replace(second, query=first.question, question=f"Well: {first.question}")
    grouped = [replace(i, group="same") for i in (first, second)]
    assert Lessons(tiny, [bare, third], [first]).examples == [third]
    assert Lessons(tiny, [grouped[1], third], grouped[:1]).examples == [third]
    twice = Lessons(tiny, [*grouped, third], [])
    assert [m["content"] for m in twice.turns(replace(first, documents=()), 9)[1::2]] == [
        first.answers[0],
        third.answers[0],
    ]
    assert twice.digest != Lessons(tiny, grouped, []).digest


def test_an_example_answers_in_the_form_that_is_asked_for(tiny: Engine, items: list[Item]) -> None:
    paper = replace(items[0], protocol="paper", documents=())
    turns = Lessons(tiny, [paper], []).turns(items[1], 1)
    assert [m["content"] for m in turns] == [paper.question, f"The answer is: {paper.answers[0]}"]


def test_rtd_is_steered_by_the_tuning_split(tiny: Engine, items: list[Item], lessons: Lessons) -> None:
    (steering,) = METHODS["RTD"].request(tiny, items, 0, SHORT, lessons).processors
    long = replace(items[0], question="word " * 600)
    with closing(Lessons(tiny, [*lessons.examples, long], [])) as more:
        assert len(more.datastore) == len(lessons.datastore) > 0, "what does not fit is left out"
    assert isinstance(steering, Rtd)
    assert steering.datastore is lessons.datastore
    told = {steering.source(n).text for n in range(len(lessons.examples))}
    assert told == {example.answers[0] for example in lessons.examples}
    example = lessons.examples[0]
    answer = tiny.answer(METHODS["RTD"].request(tiny, [example], 0, SHORT, lessons))
    assert len(answer.references) == len(answer.token_ids)


def test_what_cannot_be_asked_is_said_before_the_run(items: list[Item], tiny: Engine, lessons: Lessons) -> None:
    none = Lessons(tiny, items, items)
    for name in ("few-shot", "RTD"):
        METHODS[name].check(items, lessons)
        with pytest.raises(SettingsError, match="worked examples are needed for few-shot and RTD, got none beside the"):
            METHODS[name].check(items, none)
    METHODS["plain"].check(items, none)
    with pytest.raises(SettingsError, match="another item's documents must be memorized, got none in the set"):
        METHODS["irrelevant document memorized"].check(items[:1], none)


def test_context_aware_decoding_is_its_formula(tiny: Engine, items: list[Item], lessons: Lessons) -> None:
    """(1 + alpha) log p(with documents) - alpha log p(without), for each token; without is "no document"."""
    ways = [METHODS[name].request(tiny, items, 0, SHORT, lessons) for name in ("plain", "no document", "CAD")]
    full, bare = (list(tiny._prompts.build(r.messages, r.documents).ids) for r in ways[:2])
    for _ in range(4):
        with torch.inference_mode():
            ours, theirs = (tiny.model(torch.tensor([ids])).logits[:, -1].log_softmax(-1) for ids in (full, bare))
        token = int((1.5 * ours - 0.5 * theirs).argmax())
        full.append(token)
        bare.append(token)
    assert list(tiny.answer(ways[2]).token_ids[:4]) == full[-4:]


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


def test_the_irrelevant_document_is_never_ones_own(tiny: Engine, items: list[Item], lessons: Lessons) -> None:
    method = METHODS["irrelevant document memorized"]
    twins = [items[0], replace(items[0], id="twin"), items[1]]
    swap = replace(items[0], documents=(Document("The page with another answer."),), group="same")
    bare = replace(items[2], documents=())
    for others in (twins, [replace(items[0], group="same"), swap, bare, items[1]]):
        handle = method.request(tiny, others, 0, SHORT, lessons).memory
        assert isinstance(handle, MemoryHandle)
        assert handle.documents == items[1].documents
    said = "got none in the set 'contradicts' that differ from those of item tune-contradicts-0; ask more questions"
    with pytest.raises(SettingsError, match=re.escape(said)):
        method.request(tiny, twins[:2], 0, SHORT, lessons)


def test_settings_from_a_string() -> None:
    def made(text: str) -> FastMem:
        memory = from_settings(text).memory
        assert memory is not None
        return memory()

    assert made("steps=4") == FastMem(steps=4)
    assert made("steps = 4,learning_rate=1e-2, gate=support , shortlist=None, target_kl=None") == FastMem(
        steps=4, learning_rate=1e-2, gate="support", shortlist=None, target_kl=None
    )
    assert made("paper, learning_rate=1e-3") == FastMem.paper(learning_rate=1e-3)
    assert made("paper") == FastMem.paper()
    assert made("faithful, cad=adaptive") == FastMem.faithful(cad="adaptive")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "settings must be written as name=value, got '' in ''; try steps=4"),
        ("steps", "settings must be written as name=value, got 'steps'"),
        ("steps=", "settings must be written as name=value, got 'steps='"),
        ("stepz=4", "`stepz` is not a setting of FastMem, whose settings are steps, learning_rate,"),
        ("steps=4,steps=5", "`steps` must be set once, got it twice in 'steps=4,steps=5'; leave one out"),
        ("steps=4.5", '`steps` must be a whole number of at least 1 or "auto", got 4.5'),
        ("gate=nonsense", "`gate` must be one of"),
    ],
)
def test_settings_that_are_wrong(text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        from_settings(text)


def test_the_settings_of_a_method_spell_out_the_defaults() -> None:
    plain, memorized = METHODS["plain"].settings(), METHODS["memorized"].settings()
    assert plain == {
        "documents": True, "instruction": "", "shots": 0, "datastore": False,
        "memory": None, "memorizes": None, "processor": None,
    }  # fmt: skip
    assert METHODS["few-shot"].settings() == plain | {"shots": 3}
    assert [name for name, m in METHODS.items() if m.needs_examples] == ["few-shot", "RTD"]
    assert memorized["memory"] == FastMem().to_json()
    assert METHODS["CAD"].settings() == plain | {"processor": "context_aware", "alpha": 0.5}
    assert len({json.dumps(m.settings()) for m in METHODS.values()}) == len(METHODS)
