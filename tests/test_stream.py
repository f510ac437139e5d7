"""Streams in threads and tasks: incremental, complete, closable; the event loop is never blocked."""

from __future__ import annotations

import asyncio
import gc
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from blockbuster import BlockBuster, BlockingError
from transformers import LogitsProcessor

from gates import Gate, queued, until, waits
from memograft import Engine, FastMem, Request, Sampling
from memograft.errors import EngineClosedError, RequestCancelledError, RequestTimeoutError, SettingsError
from memograft.serving.stream import TextSoFar
from test_decode import Say
from test_engine import FACTS, ask, generated

TEXT = "Colours are red, green and blue; ü ß 。🙂 é."


def test_the_first_piece_comes_before_the_answer_is_complete(engine: Engine) -> None:
    gate = Gate(free=4)
    stream = engine.stream(ask(n=60, processors=[Say(engine, TEXT), gate]))
    pieces = [next(stream)]
    assert stream.answer is None
    gate.go.set()
    pieces += stream
    assert stream.answer is not None
    assert "".join(pieces) == stream.answer.text == TEXT
    assert len(pieces) > 10
    assert list(stream) == []


@pytest.mark.parametrize("stop", ["green and", "。", "🙂 é", "ü", "not there", " blue; X"])
def test_pieces_joined_are_the_text(engine: Engine, stop: str) -> None:
    """No incomplete characters and no part of a stop string, even if these are split over tokens."""
    stream = engine.stream(ask(processors=[Say(engine, TEXT)], sampling=Sampling(60, stop=[stop])))
    pieces = list(stream)
    assert stream.answer is not None
    assert "".join(pieces) == stream.answer.text == TEXT.split(stop)[0]
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_whatever_a_random_model_says(models: Any, kind: str) -> None:
    from tokenizers_ import make

    with Engine(models("qwen2"), make(kind)) as engine:
        for seed in range(4):
            stream = engine.stream(ask(sampling=Sampling(30, temperature=1.5, seed=seed)))
            pieces = list(stream)
            assert stream.answer is not None
            assert "".join(pieces) == stream.answer.text


def test_text_so_far_holds_back_what_may_still_go() -> None:
    text = TextSoFar("".join, ["STOP", "OPEN"])  # type: ignore[arg-type]
    for said, sure in [
        ("a S", "a "),
        ("a ST", "a "),
        ("a STx", "a STx"),
        ("a STO", "a "),
        ("a\ufffd", "a"),
        ("aSTOPb", "a"),
    ]:
        assert text(said) == sure, said  # type: ignore[arg-type]
    assert text.final("a ST") == "a ST"  # type: ignore[arg-type]


def test_closing_a_stream_frees_its_row_and_harms_no_neighbour(engine: Engine) -> None:
    hold, gate = Gate(), Gate(free=3)
    blocker = engine.stream(ask("Hold.", n=1, processors=[hold]))
    results: queue.Queue[Any] = queue.Queue()
    starter = threading.Thread(target=lambda: results.put(list(blocker)))
    starter.start()
    assert hold.waiting.wait(10)  # later requests share a batch
    threading.Thread(target=lambda: (queued(engine, 2), hold.go.set())).start()
    other = ask(documents=FACTS, n=30)
    neighbour = threading.Thread(target=lambda: results.put(engine.answer(other)))
    neighbour.start()
    stream = engine.stream(ask(n=200, processors=[Say(engine, TEXT * 3), gate]))
    next(stream)
    stream.close()
    with pytest.raises(RequestCancelledError, match="was cancelled"):
        list(stream)
    gate.go.set()
    starter.join(10)
    neighbour.join(10)
    results.get()
    assert results.get().token_ids == generated(engine, other)
    assert gate.calls <= 5, "the row went on"
    assert engine.answer(ask()).token_ids == generated(engine, ask())


def test_a_stream_that_is_dropped_is_closed(engine: Engine) -> None:
    gate = Gate(free=2)
    stream = engine.stream(ask(n=200, processors=[Say(engine, TEXT * 3), gate]))
    next(stream)
    del stream
    gc.collect()
    gate.go.set()
    engine.answer(ask(n=1))  # runs after the cancelled row has ended
    assert gate.calls < 8


def test_a_stream_that_never_starts(engine: Engine) -> None:
    stream = engine.stream(ask())
    stream.close()
    assert list(stream) == []
    assert stream.answer is None
    with engine.stream(ask()) as unused:
        assert unused.answer is None


def test_an_error_ends_a_stream_once(engine: Engine) -> None:
    class Fails(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            raise ZeroDivisionError("in the processor")

    stream = engine.stream(ask(processors=[Fails()]))
    with pytest.raises(ZeroDivisionError):
        list(stream)
    assert list(stream) == []
    refused = engine.stream(Request("Who?", memory="no"))  # type: ignore[arg-type]
    with pytest.raises(SettingsError):
        next(refused)


def test_a_listener_that_raises_harms_no_neighbour(engine: Engine) -> None:
    from memograft.serving.stream import wait

    def fails(_: str) -> None:
        raise ZeroDivisionError("in the listener")

    other = ask(documents=FACTS)
    job = engine._submit([ask(n=30, processors=[Say(engine, TEXT)])], on_text=fails)
    (error,) = wait(job)
    assert isinstance(error, ZeroDivisionError)
    assert engine.answer(other).token_ids == generated(engine, other)


@pytest.mark.parametrize("how", ["answer", "stream", "batch"])
def test_a_timeout_ends_a_row_and_no_other(engine: Engine, how: str) -> None:
    gate = Gate(free=2)
    slow = ask(n=200, processors=[Say(engine, TEXT * 3), gate])
    calls: dict[str, Callable[[Request], Any]] = {
        "answer": engine.answer,
        "stream": lambda request: list(engine.stream(request)),
        "batch": lambda request: engine.answer_batch([ask(n=2), request]),
    }
    for timeout in (0.2, 1.0, 5.0):  # a busy machine may need longer to start the row
        with pytest.raises(RequestTimeoutError, match="`timeout` passed"):
            calls[how](replace(slow, timeout=timeout))
        if gate.waiting.is_set():
            break
    assert gate.waiting.is_set()
    gate.go.set()
    engine.answer(ask(n=1))
    assert gate.calls <= 3, "the row went on"


def test_a_timeout_reaches_a_request_that_waits_behind_others(engine: Engine) -> None:
    gate = Gate()
    threading.Thread(target=lambda: engine.answer(ask(n=1, processors=[gate]))).start()
    assert gate.waiting.wait(10)
    with pytest.raises(RequestTimeoutError):
        engine.answer(ask(timeout=0.05))
    with pytest.raises(RequestTimeoutError):
        next(engine.stream(ask(timeout=0.05)))

    async def late() -> None:
        with pytest.raises(RequestTimeoutError):
            await engine.aanswer(ask(timeout=0.05))

    asyncio.run(late())
    gate.go.set()


def test_rows_that_end_early_are_answered_early(engine: Engine) -> None:
    gate = Gate(free=2)
    jobs = engine._submit([ask(n=1), ask(n=5, processors=[gate])])
    assert len(jobs[0].future.result(10).token_ids) == 1
    assert not jobs[1].done
    gate.go.set()
    assert len(jobs[1].future.result(10).token_ids) == 5


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Restore Python's Ctrl-C handler: background jobs and pytest-xdist's workers ignore the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("how", ["answer", "stream", "memorize"])
def test_ctrl_c_gives_the_request_up(engine: Engine, how: str) -> None:
    gate = Gate()
    hold = engine._submit([ask(n=3, processors=[gate])])[0]  # the worker is busy until the gate opens
    assert gate.waiting.wait(10)
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        queued(engine, 1)
        until(lambda: waits(main))
        signal.pthread_kill(main, signal.SIGINT)

    calls = {
        "answer": lambda: engine.answer_batch([ask(), ask()]),
        "stream": lambda: list(engine.stream(ask())),
        "memorize": lambda: engine.memorize(FACTS),
    }
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        calls[how]()
    passes = []
    hook = engine.model.register_forward_pre_hook(lambda *_: passes.append(1))
    gate.go.set()
    hold.future.result(10)
    engine.close()
    hook.remove()
    assert len(passes) <= 3, "a request that was given up was worked on"


class TestAsync:
    def test_the_loop_is_never_blocked(self, engine: Engine) -> None:
        async def main() -> None:
            stream = engine.astream(ask(n=40, processors=[Say(engine, TEXT)]))
            pieces = [piece async for piece in stream]
            assert stream.answer is not None
            assert "".join(pieces) == stream.answer.text == TEXT
            answer = await engine.aanswer("Who?", FACTS, memory=FastMem(steps=2), sampling=Sampling(3), timeout=20)
            assert answer.memory is not None
            await engine.astream(ask(n=2)).aclose()
            with pytest.raises(BlockingError):
                time.sleep(0.01)  # the test must detect this

        blockbuster = BlockBuster()
        blockbuster.activate()
        try:
            asyncio.run(main())
        finally:
            blockbuster.deactivate()

    def test_concurrent_calls_become_mixed_batches(self, make_engine: Any) -> None:
        engine = make_engine(max_batch=8, prompt_lookup=0)
        widths: list[int] = []

        def count(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
            if kwargs.get("input_ids") is not None and kwargs["input_ids"].shape[1] > 1:
                widths.append(kwargs["input_ids"].shape[0])

        gate = Gate()
        requests = [ask(f"Question {n}?", n=3, documents=FACTS[: n % 3]) for n in range(16)]

        async def main() -> list[Any]:
            first = asyncio.create_task(engine.aanswer(ask(n=1, processors=[gate])))
            while not gate.waiting.is_set():
                await asyncio.sleep(0.005)
            tasks = [asyncio.create_task(engine.aanswer(r)) for r in requests]
            while engine._worker._queue.qsize() < len(tasks):
                await asyncio.sleep(0.005)
            gate.go.set()
            await first
            return await asyncio.gather(*tasks)

        hook = engine.model.register_forward_pre_hook(count, with_kwargs=True)
        answers = asyncio.run(main())
        hook.remove()
        assert [width for width in widths if width > 1] == [8, 8]
        assert [a.token_ids for a in answers] == [generated(engine, r) for r in requests]

    def test_cancelling_a_task_frees_its_row(self, engine: Engine) -> None:
        gate = Gate(free=2)

        async def main() -> Any:
            other = asyncio.create_task(engine.aanswer(ask(documents=FACTS)))
            task = asyncio.create_task(engine.aanswer(ask(n=200, processors=[Say(engine, TEXT * 3), gate])))
            while not gate.waiting.is_set():
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            gate.go.set()
            return await other

        assert asyncio.run(main()).token_ids == generated(engine, ask(documents=FACTS))
        assert gate.calls <= 4

    def test_leaving_a_stream_early_frees_its_row(self, engine: Engine) -> None:
        closed, dropped = Gate(free=3), Gate(free=3)

        async def main() -> None:
            async with engine.astream(ask(n=200, processors=[Say(engine, TEXT * 3), closed])) as stream:
                async for _ in stream:
                    break
            with pytest.raises(RequestCancelledError):
                await stream.result()
            closed.go.set()
            async for _ in engine.astream(ask(n=200, processors=[Say(engine, TEXT * 3), dropped])):
                break
            gc.collect()
            dropped.go.set()

        asyncio.run(main())
        engine.answer(ask(n=1))
        assert max(closed.calls, dropped.calls) <= 6

    def test_several_loops_and_threads_at_once(self, engine: Engine) -> None:
        answers: queue.Queue[Any] = queue.Queue()
        requests = [ask(f"{n}?", n=4) for n in range(4)]

        def loop(request: Request) -> None:
            answers.put((request.question, asyncio.run(engine.aanswer(request)).token_ids))

        threads = [threading.Thread(target=loop, args=[r]) for r in requests]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert dict(answers.get() for _ in threads) == {r.question: generated(engine, r) for r in requests}

    def test_a_loop_that_ends_before_its_answer(self, engine: Engine) -> None:
        gate = Gate(free=1)

        async def main() -> None:
            stream = engine.astream(ask(n=9, processors=[gate]))
            task = asyncio.ensure_future(stream.__anext__())
            while not gate.waiting.is_set():
                await asyncio.sleep(0.005)
            task.cancel()

        asyncio.run(main())
        gate.go.set()
        assert engine.answer(ask()).token_ids == generated(engine, ask())


class TestClosing:
    def test_requests_that_wait_fail_and_what_runs_is_finished(self, make_engine: Any) -> None:
        engine = make_engine()
        gate = Gate()
        running = engine._submit([ask(n=2, processors=[gate])])[0]
        assert gate.waiting.wait(10)
        waiting = engine._submit([ask()])[0]
        closer = threading.Thread(target=engine.close)
        closer.start()
        until(lambda: engine._worker.closed)
        gate.go.set()
        closer.join(10)
        assert len(running.future.result(0).token_ids) == 2
        with pytest.raises(EngineClosedError, match="was closed before"):
            waiting.future.result(0)
        for call in (
            lambda: engine.answer(ask()),
            lambda: next(engine.stream(ask())),
            lambda: engine.memorize(FACTS),
            lambda: asyncio.run(engine.aanswer(ask())),
        ):
            with pytest.raises(EngineClosedError, match="takes no requests"):
                call()

    def test_an_engine_nobody_holds_ends_its_thread(self, models: Any, tokenizer: Any) -> None:
        engine = Engine(models(), tokenizer)
        engine.answer(ask(n=1))
        thread = engine._worker._thread
        del engine
        gc.collect()
        thread.join(10)
        assert not thread.is_alive()

    def test_a_stream_holds_its_engine(self, models: Any, tokenizer: Any) -> None:
        stream = Engine(models(), tokenizer).stream(ask(n=4))
        assert "".join(stream) == stream.answer.text  # type: ignore[union-attr]
