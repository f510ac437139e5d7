"""Many requests of all kinds at once, some cancelled: each answer equals that of the request alone."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from memograft import Cad, Datastore, Engine, FastMem, MemoryHandle, Request, Rtd, Sampling
from memograft.errors import RequestTimeoutError
from memograft.evaluation.items import world

THREADS, QUESTIONS, ANSWERS = 8, 40, 240
SCHEMA = {"type": "object", "properties": {"answer": {"type": "string", "maxLength": 20}}, "required": ["answer"]}


def requests(engine: Engine, datastore: Datastore, rng: random.Random) -> list[Request]:
    """Questions of the bundled world with different settings; their documents contradict each other."""
    items = [item for item in world("test", QUESTIONS) if item.set in ("contradicts", "agrees", "one of five")]
    handle = engine.memorize(items[0].documents)
    bare = engine.memorize(items[1].documents, FastMem(fallback=False))
    made = []
    for item in rng.sample(items, QUESTIONS):
        plain = Request(item.question, documents=item.documents, sampling=Sampling(max_new_tokens=12))
        sampled = replace(plain.sampling, temperature=0.8, seed=rng.randrange(2**32))
        more: dict[str, Any] = rng.choice(
            [
                {},
                {"memory": FastMem()},
                {"memory": FastMem(adapter="full", steps=2, learning_rate=1e-3)},
                {"memory": FastMem(gate="support")},
                {"memory": FastMem(contrast=0.5)},
                {"memory": handle, "documents": handle.documents},
                {"memory": bare, "documents": bare.documents},
                {"memory": FastMem(fallback=False)},
                {"memory": FastMem(fallback=False, adapter="full", steps=2, learning_rate=1e-3)},
                {"memory": FastMem(fallback=False, contrast=0.5)},
                {"memory": FastMem(), "sampling": sampled},
                {"sampling": sampled},
                {"processors": [Cad(0.5)]},
                {"memory": FastMem(), "processors": [Rtd(datastore, weight=0.5)]},
                {"json_schema": SCHEMA, "sampling": Sampling(max_new_tokens=40)},
            ]
        )
        made.append(replace(plain, **more))
    return made


def falls_back(memory: FastMem | MemoryHandle) -> bool:
    return memory.fallback if isinstance(memory, FastMem) else memory.settings.fallback


@pytest.mark.timeout(600)
def test_answers_do_not_depend_on_who_else_asks(
    tiny: Engine, rng: random.Random, effort: int, tally: Counter[str]
) -> None:
    with Datastore.build(tiny, [("What is the capital of France?", "It is Lyon.")], progress=False) as datastore:
        asked = requests(tiny, datastore, rng)
        alone = [tiny.answer(request).text for request in asked]
        assert len(set(alone)) > QUESTIONS / 2

        def attack(job: tuple[int, str]) -> str | None:
            n, way = job
            request = asked[n]
            if way == "answer":
                return tiny.answer(request).text
            if way == "timeout":
                try:
                    return tiny.answer(replace(request, timeout=0.05)).text
                except RequestTimeoutError:
                    return None
            with tiny.stream(request) as stream:
                if way == "stream":
                    text = "".join(stream)
                    # Streams have no fallback, so they are compared only with whole answers without one.
                    return text if request.memory is None or not falls_back(request.memory) else None
                next(stream, None)  # then cancelled
                return None

        ways = rng.choices(["answer", "stream", "give up", "timeout"], [12, 3, 3, 2], k=ANSWERS * effort)
        jobs = [(rng.randrange(QUESTIONS), way) for way in ways]
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(attack, jobs))
    wrong = [
        (asked[n], way, text, alone[n])
        for (n, way), text in zip(jobs, found, strict=True)
        if text not in (None, alone[n])
    ]
    streamed = sum(
        way == "stream" and text is not None and asked[n].memory is not None
        for (n, way), text in zip(jobs, found, strict=True)
    )
    assert streamed, "no stream with a memory was compared"
    tally.update(streams_with_a_memory=streamed)
    tally.update(answers=sum(text is not None for text in found), given_up=sum(text is None for text in found))
    assert not wrong, f"{len(wrong)} of {len(jobs)}, such as {wrong[0]}"
