"""An engine in a forked process: it works, or explains why it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch

from forks import in_a_fork
from memograft import Bank, Engine, FastMem, Request, shared, shared_engine
from memograft.errors import EngineClosedError
from memograft.serving.work import check_fork
from test_engine import FACTS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

ASKED = Request("What is the capital of France?", documents=["The capital of France is Lyon."], memory=FastMem())


def test_a_child_answers_as_its_parent_does(tiny: Engine) -> None:
    text = tiny.answer(ASKED).text

    def child() -> None:
        assert tiny.answer(ASKED).text == text
        assert "".join(tiny.stream(replace(ASKED, memory=None)))
        assert len(tiny.memorize(FACTS[:1]).documents) == 1
        assert [a.text for a in tiny.answer_batch([ASKED, ASKED])] == [text] * 2
        tiny.close()

    assert in_a_fork(child) == 0
    assert tiny.answer(ASKED).text == text


def test_a_child_of_a_process_that_computes_with_many_threads() -> None:
    """OpenMP's threads do not exist in the child, so waiting for them would hang."""
    script = """
import os, torch
from memograft import Engine
engine = Engine.from_pretrained("tiny")
weights = torch.randn(2000, 2000)
weights = weights @ weights
text = engine.answer("What is the capital of France?").text
if not (child := os.fork()):
    os._exit(engine.answer("What is the capital of France?").text != text or torch.get_num_threads() != 1)
print(torch.get_num_threads(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert run.stdout == "2 0\n"


def test_a_child_of_a_process_in_the_middle_of_an_answer(tiny: Engine) -> None:
    """The parent's answer continues in the parent and does not affect the child; neither hangs."""
    stream = tiny.stream(ASKED)
    first = next(stream)
    assert in_a_fork(lambda: None) == 0
    assert in_a_fork(lambda: tiny.answer(ASKED)) == 0
    assert first + "".join(stream) == tiny.answer(ASKED).text


def test_locks_that_are_held_while_a_process_forks_are_free_in_the_child() -> None:
    taken, go = threading.Event(), threading.Event()
    engine, bank = shared_engine("tiny"), Bank()

    def hold() -> None:
        with engine._worker._lock, shared._lock, bank._lock, bank.prefixes._lock:
            taken.set()
            go.wait()

    def child() -> None:
        assert shared_engine("tiny") is engine
        assert engine.answer(ASKED).text
        assert (bank.statistics.held, bank.prefixes.nbytes) == (0, 0)

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait()
    try:
        assert in_a_fork(child) == 0
    finally:
        go.set()
        holder.join()


def test_a_model_on_a_gpu_is_refused_by_name() -> None:
    with pytest.raises(EngineClosedError, match=r"is on cuda:0, which a forked process cannot use; start processes"):
        check_fork(torch.device("cuda", 0))
