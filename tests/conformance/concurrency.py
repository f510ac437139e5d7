"""Concurrent callers, an event loop that is not blocked, and cancelled requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import aclosing, closing
from typing import Any

import pytest
from blockbuster import blockbuster_ctx

from conformance.case import Case
from conformance.fixtures import Seen
from conformance.front import Front, Piece, user
from conformance.pages import KNOWN, OTHER, OTHER_KNOWN, OTHER_QUESTION, PAGE, QUESTION
from conformance.reference import answered
from memograft import Engine
from memograft.errors import RequestCancelledError

__all__ = ["Concurrency"]

# (question, documents, answer); each request has its own memory or none.
CASES = [
    (QUESTION, [PAGE], PAGE),
    (QUESTION, [], KNOWN),
    (OTHER_QUESTION, [OTHER], OTHER),
    (OTHER_QUESTION, [PAGE], OTHER_KNOWN),
] * 4


async def unblocked(call: Awaitable[Any]) -> Any:
    """Await a call and fail if it blocks the event loop."""
    with blockbuster_ctx():
        return await call


async def pieces(chat: Front, question: str, **options: Any) -> list[Piece]:
    return [piece async for piece in chat.astream(user(question), **options)]


class Concurrency(Case):
    """Async calls do not block, and cancelled requests stop."""

    @pytest.fixture
    def endless(self, wild: Front, monkeypatch: pytest.MonkeyPatch) -> tuple[Front, Seen]:
        """A front with long answers, and the record of its requests."""
        return wild, Seen(wild.engine, monkeypatch)

    def given_up(self, endless: tuple[Front, Seen], jobs: int = 1) -> None:
        """Each job was cancelled in the engine, and the next answer is right."""
        chat, seen = endless
        assert [type(job.future.exception()) for job in seen.jobs] == [RequestCancelledError] * jobs
        assert chat.text("Who?", max_tokens=4) == answered(chat.engine, user("Who?"), memory=None, max_tokens=4).text

    def test_nothing_blocks_the_loop(self, chat: Front) -> None:
        assert asyncio.run(unblocked(chat.aask(user(QUESTION), documents=[PAGE]))).text == PAGE
        *texts, _ = asyncio.run(unblocked(pieces(chat, QUESTION, documents=[PAGE])))
        assert "".join(map(str, texts)) == PAGE

    def test_a_model_is_loaded_beside_the_loop(self) -> None:
        fresh = self.front.named("tiny", model_kwargs={"max_batch": 5}, max_tokens=24)
        ticks = 0

        async def asked() -> list[str]:
            async def tick() -> None:
                nonlocal ticks
                while True:
                    ticks += 1
                    await asyncio.sleep(0.001)

            ticking = asyncio.create_task(tick())
            with blockbuster_ctx():
                answers = await asyncio.gather(*(fresh.aask(user(QUESTION)) for _ in range(4)))
            ticking.cancel()
            return [said.text for said in answers]

        assert set(asyncio.run(asked())) == {KNOWN}
        assert ticks > 5
        fresh.engine.close()

    def test_sixteen_callers_at_once_are_a_few_mixed_batches(
        self, chat: Front, seen: Seen, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("memograft.serving.queue._GATHER", 2)  # waits even if requests arrive slowly

        async def asked() -> list[str]:
            return [a.text for a in await asyncio.gather(*(chat.aask(user(q), documents=d) for q, d, _ in CASES))]

        assert asyncio.run(asked()) == [text for _, _, text in CASES]
        sizes = [len(batch) for batch in seen.batches]
        assert sum(sizes) == 16
        assert len(sizes) <= 4, f"sixteen calls ran as {len(sizes)} batches of {sizes}"

    def test_a_cancelled_call_is_given_up(self, endless: tuple[Front, Seen]) -> None:
        chat, seen = endless

        async def cancelled() -> None:
            task = asyncio.create_task(chat.aask(user("Who?"), max_tokens=200))
            while not seen.batches:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(cancelled())
        self.given_up(endless)

    def test_a_stream_that_is_left_is_given_up(self, endless: tuple[Front, Seen]) -> None:
        chat, _ = endless

        async def left() -> None:
            async with aclosing(chat.astream(user("Who?"), max_tokens=200)) as stream:
                async for piece in stream:
                    assert piece
                    break

        asyncio.run(left())
        with closing(chat.stream(user("Who?"), max_tokens=200)) as stream:
            assert next(stream)
        self.given_up(endless, 2)

    def test_an_engine_that_closes_while_it_is_asked(self) -> None:
        engine = Engine.from_pretrained("tiny")
        chat = self.front.over(engine, max_tokens=24)

        async def asked() -> list[Any]:
            calls = [asyncio.create_task(chat.aask(user(QUESTION), documents=[PAGE])) for _ in range(4)]
            await asyncio.sleep(0)
            await asyncio.to_thread(engine.close)
            return await asyncio.gather(*calls, return_exceptions=True)

        for result in asyncio.run(asked()):
            assert isinstance(result, RuntimeError) or result.text == PAGE
