"""No request sees another request's memory, and other users of the model see none."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from memograft import Answer, Engine, FastMem, Request, Sampling
from test_engine import prompt_ids

STRONG = FastMem(steps=3, learning_rate=0.05, rank=4, target_kl=None, max_kl=1e9, fallback=False, relevance=None)
CITIES = ["Paris", "Rome", "Oslo", "Bergen", "Velmora", "Lima", "Cairo", "Quito"]


def contradicting(thread: int, n: int, memory: FastMem | None) -> Request:
    """The same question with documents that differ in every request."""
    documents = [f"The capital of France is {CITIES[thread]}{n}.", f"The year is {19 + thread}{30 + n}."]
    sampling = Sampling(6, temperature=0.9 if n % 4 == 3 else 0.0, seed=n)
    return Request("What is the capital of France?", documents=documents[: 1 + n % 2], memory=memory, sampling=sampling)


@pytest.mark.timeout(120)
def test_eight_threads_of_eight_requests_equal_single_runs(make_engine: Any) -> None:
    engine: Engine = make_engine("qwen2")
    requests = [[contradicting(t, n, STRONG) for n in range(8)] for t in range(8)]
    answers: dict[tuple[int, int], Answer] = {}
    start = threading.Barrier(8)

    def run(thread: int) -> None:
        start.wait()
        for n, request in enumerate(requests[thread]):
            answers[thread, n] = engine.answer(request)

    threads = [threading.Thread(target=run, args=[t]) for t in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    changed = 0
    for t in range(8):
        for n, request in enumerate(requests[t]):
            alone, together = engine.answer(request), answers[t, n]
            assert together.token_ids == alone.token_ids, (t, n)
            assert together.memory is not None
            assert alone.memory is not None
            assert together.memory.loss_after == pytest.approx(alone.memory.loss_after, abs=1e-4)
            assert together.documents == request.documents
            changed += n < 2 and alone.token_ids != engine.answer(contradicting(t, n, None)).token_ids
    assert changed >= 12, "memories that change nothing prove nothing"


def test_others_who_use_the_model_see_the_base_model(make_engine: Any) -> None:
    """Bit for bit, at any time during prefill, memorizing and decoding."""
    engine: Engine = make_engine("llama")
    ids = torch.tensor([prompt_ids(engine, contradicting(0, 0, None))])
    with torch.no_grad():
        expected = engine.model(ids).logits
    stop = threading.Event()
    wrong: list[str] = []
    calls: list[int] = []

    def look() -> None:
        with torch.no_grad():
            while not stop.is_set():
                calls.append(1)
                try:
                    if not torch.equal(engine.model(ids).logits, expected):
                        wrong.append("other logits")
                except Exception as e:
                    wrong.append(repr(e))

    request = contradicting(
        0,
        1,
        FastMem(
            steps=20,
            learning_rate=0.05,
            rank=4,
            target_kl=None,
            max_kl=1e9,
            fallback=False,
            relevance=None,
            gate="support",
        ),
    )
    alone = engine.answer(request)
    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        answers = [engine.answer(request)]
        while len(answers) < 6 or (len(calls) < 20 and not wrong):
            answers.append(engine.answer(request))
    finally:
        stop.set()
        watcher.join()
    assert not wrong, f"{len(wrong)} of {len(calls)} passes were not the base model's: {wrong[:1]}"
    assert {a.token_ids for a in answers} == {alone.token_ids}, "they disturbed the engine"
