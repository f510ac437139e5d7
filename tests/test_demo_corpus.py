"""The bundled corpus: its questions are correct, retrieval finds the pages, and answers are judged correctly."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from memograft import VectorStore
from memograft.cli.demo import questions
from memograft.cli.index import index_folder
from memograft.cli.outcome import KINDS, Outcome, Question, says, summary
from memograft.memory.report import MemoryReport
from memograft.passages.reading import find_files, read_file

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "src/memograft/data/demo/pages"
QUESTIONS = questions()


def _world() -> dict[str, dict[str, str]]:
    spec = importlib.util.spec_from_file_location("tiny_world", ROOT / "recipes/tiny/world.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.facts()


WORLD = _world()


def test_size_and_balance():
    assert len(find_files([PAGES])) >= 30
    assert len(QUESTIONS) >= 24
    for kind in KINDS:
        assert sum(q.kind == kind for q in QUESTIONS) >= len(QUESTIONS) // 3
    assert {q.page for q in QUESTIONS} == {p.name for p in find_files([PAGES])}


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.page)
def test_pages_say_what_the_questions_expect(question):
    page = read_file(PAGES / question.page)
    assert says(page.text, question.expected)
    assert says(page.text, question.subject)
    assert page.text.startswith(page.title)
    assert len(page.text) < 480, "about 120 tokens"
    known = WORLD.get(question.relation, {}).get(question.subject)
    if question.kind == "agrees":
        assert known == question.expected
        assert question.belief is None
    elif question.kind == "contradicts":
        assert known == question.belief != question.expected
        assert not says(page.text, question.belief), "one page, one value"
    else:
        assert known is None
        assert not any(question.subject in subjects for subjects in WORLD.values())


def test_retrieval_puts_the_right_page_first():
    with VectorStore(progress=False) as store:
        index_folder(store, PAGES)
        wrong = [
            q.question for q in QUESTIONS if store.search(q.question, k=1)[0].document.metadata["source"] != q.page
        ]
    assert wrong == []


def outcome(closed: str, plain: str, memorized: str, kind: str = "contradicts") -> Outcome:
    belief = "Paris" if kind == "contradicts" else None
    question = Question("?", "a.md", kind, "capital", "France", "Marseille", belief)
    return Outcome(question, (), closed, plain, memorized, MemoryReport(), 0.1, 0.2)


@pytest.mark.parametrize(
    ("answers", "changed", "spoiled"),
    [
        (("Paris.", "Paris.", "Marseille."), True, False),
        (("Paris.", "Marseille.", "Marseille."), True, False),
        (("Paris.", "Marseille.", "Paris."), False, True),
        (("Rome.", "Paris.", "Marseille."), False, False),
        (("Paris.", "Paris.", "Paris or Marseille."), False, False),
        (("Marseille.", "Paris.", "Paris."), False, True),
        (("Paris.", "Paris.", "Paris."), False, False),
    ],
)
def test_judgement(answers, changed, spoiled):
    assert (outcome(*answers).changed, outcome(*answers).spoiled) == (changed, spoiled)


def test_whole_words_only():
    assert says("It is the TALAN.", "talan")
    assert not says("It is 141.", "41")
    assert not says("Marseilles", "Marseille")


def test_summary_counts_every_outcome_once():
    right, wrong = "Marseille.", "Lyon."
    outcomes = [outcome("Paris.", p, m) for p in (right, wrong) for m in (right, wrong)]
    outcomes += [outcome(right, right, wrong, kind="agrees")]
    counts = summary(outcomes)
    assert [counts[k] for k in ("right_both_ways", "wrong_then_right", "right_then_wrong", "wrong_both_ways")] == [
        1,
        1,
        2,
        1,
    ]
    assert counts["changed_to_document"] == 2
    assert counts["changed_only_by_memorizing"] == 1
    assert len(counts["spoiled"]) == 2
    assert counts["right_by_kind"]["agrees"] == {"of": 1, "closed_book": 1, "plain": 1, "memorized": 0}
    assert counts["right"]["of"] == 5
