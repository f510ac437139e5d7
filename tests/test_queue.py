"""The queue without any model: batches, cancellation, deadlines, closing, and unreferenced engines."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from gates import until
from memograft.errors import EngineClosedError, RequestCancelledError, RequestTimeoutError
from memograft.serving.queue import Job, Worker


class Runner:
    """A double of an engine that records what begins together, and waits inside the first until `go` is set.

    With a `room` it also takes jobs that arrive meanwhile.
    """

    def __init__(self, max_batch: int = 4) -> None:
        self.batches: list[list[Any]] = []
        self.room = 0
        self.inside, self.go = threading.Event(), threading.Event()
        self.worker = Worker(self.run, max_batch)
        weakref.finalize(self, self.worker.abandon)

    def run(self, jobs: list[Job], more: Callable[[int], list[Job]]) -> None:
        self.batches.append([job.payload for job in jobs])
        self.inside.set()
        assert self.go.wait(10)
        if self.room:
            new = more(self.room)
            self.batches.append([job.payload for job in new])
            jobs += new
        for job in jobs:
            if job.call is not None:
                job.succeed(job.call(job.given_up))
            elif job.payload != "forgotten":
                job.succeed(job.payload)

    def hold(self) -> Job:
        """A job that is running."""
        job = Job("first")
        self.worker.submit([job])
        assert self.inside.wait(10)
        return job


@pytest.fixture
def runner() -> Any:
    runner = Runner()
    yield runner
    runner.go.set()
    runner.worker.close()


def test_what_waits_becomes_one_batch_and_no_larger_than_allowed(runner: Runner) -> None:
    first = runner.hold()
    jobs = [Job(n) for n in range(6)]
    for job in jobs:
        runner.worker.submit([job])
    runner.go.set()
    assert [job.future.result(10) for job in (first, *jobs)] == ["first", *range(6)]
    assert runner.batches == [["first"], [0, 1, 2, 3], [4, 5]]


def test_callers_of_about_the_same_time_share_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memograft.serving.queue._GATHER", 20)  # threads may start late on a busy machine
    runner = Runner(max_batch=8)
    runner.go.set()
    start = threading.Barrier(8)
    jobs = [Job(n) for n in range(8)]

    def call(job: Job) -> None:
        start.wait(10)
        runner.worker.submit([job])

    threads = [threading.Thread(target=call, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [job.future.result(10) for job in jobs] == list(range(8))
    runner.worker.close()
    assert [sorted(batch) for batch in runner.batches] == [list(range(8))]


def test_a_lone_caller_does_not_wait_for_others_for_long() -> None:
    runner = Runner(max_batch=8)
    runner.go.set()
    runner.worker.submit([job := Job("alone")])
    assert job.future.result(10) == "alone"
    runner.worker.close()


def test_calls_run_alone_and_in_turn(runner: Runner) -> None:
    runner.hold()
    order: list[str] = []
    call = Job(call=lambda given_up: order.append(f"call, given up: {given_up()}"))
    jobs = [Job(0), call, Job(1)]
    runner.worker.submit(jobs)
    runner.go.set()
    jobs[2].future.result(10)
    assert runner.batches == [["first"], [0], [None], [1]]
    assert order == ["call, given up: False"]


def test_what_arrives_meanwhile_joins_if_there_is_room(runner: Runner) -> None:
    first = runner.hold()
    runner.room = 2
    jobs = [Job(n) for n in range(3)]
    for job in jobs:
        runner.worker.submit([job])
    jobs[0].cancel()
    jobs.append(Job(3))
    runner.worker.submit(jobs[3:])
    runner.go.set()
    assert [job.future.result(10) for job in (first, *jobs[1:])] == ["first", 1, 2, 3]
    assert runner.batches[:3] == [["first"], [1, 2], [3]]


def test_an_error_outside_of_any_job_fails_those_that_run(runner: Runner) -> None:
    def fails(_: Any) -> None:
        raise ZeroDivisionError("in the call")

    runner.go.set()
    job, after = Job(call=fails), Job("after")
    runner.worker.submit([job, after])
    with pytest.raises(ZeroDivisionError, match="in the call"):
        job.future.result(10)
    assert after.future.result(10) == "after"


def test_cancelling_a_job_that_waits(runner: Runner) -> None:
    runner.hold()
    job, neighbour = Job("cancelled"), Job("neighbour")
    runner.worker.submit([job, neighbour])
    job.cancel()
    with pytest.raises(RequestCancelledError, match="was cancelled before it was answered"):
        job.future.result(0)
    runner.go.set()
    assert neighbour.future.result(10) == "neighbour"
    assert runner.batches == [["first"], ["neighbour"]]


def test_cancelling_a_job_that_runs_or_is_done(runner: Runner) -> None:
    job = runner.hold()
    assert not job.given_up()
    job.cancel()
    assert job.given_up()
    with pytest.raises(RequestCancelledError):
        job.future.result(0)
    runner.go.set()
    done = Job("done")
    runner.worker.submit([done])
    assert done.future.result(10) == "done"
    done.cancel()
    done.expire()
    done.fail(ValueError())
    assert done.future.result(0) == "done"


def test_a_deadline_in_the_queue(runner: Runner) -> None:
    runner.hold()
    job = Job("late", timeout=0)
    runner.worker.submit([job])
    runner.go.set()
    with pytest.raises(RequestTimeoutError, match="`timeout` passed; allow more time"):
        job.future.result(10)
    assert runner.batches == [["first"]]


def test_many_threads_settle_one_job_once() -> None:
    for _ in range(50):
        job = Job()
        start = threading.Barrier(4)
        actions = [job.cancel, job.expire, lambda job=job: job.succeed(1), lambda job=job: job.fail(ValueError())]
        threads = [threading.Thread(target=lambda a=a, s=start: (s.wait(), a())) for a in actions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert job.done


def test_a_forgotten_job_does_not_hang(runner: Runner) -> None:
    runner.go.set()
    job = Job("forgotten")
    runner.worker.submit([job])
    with pytest.raises(EngineClosedError, match="the engine ended before this request was answered"):
        job.future.result(10)


def test_closing_finishes_what_runs_and_fails_what_waits(runner: Runner) -> None:
    first = runner.hold()
    runner.room = 3
    waiting = Job("waiting")
    runner.worker.submit([waiting])
    closers = [threading.Thread(target=runner.worker.close) for _ in range(3)]
    for closer in closers:
        closer.start()
    until(lambda: runner.worker.closed)
    with pytest.raises(EngineClosedError, match="takes no requests; make a new one"):
        runner.worker.submit([Job("late")])
    runner.go.set()
    for closer in closers:
        closer.join(10)
    assert first.future.result(0) == "first"
    with pytest.raises(EngineClosedError, match="was closed before this request was answered"):
        waiting.future.result(0)
    runner.worker.close()


def test_closing_from_the_workers_own_thread(runner: Runner) -> None:
    runner.go.set()
    job = Job(call=lambda _: runner.worker.close())
    runner.worker.submit([job])
    job.future.result(10)
    runner.worker._thread.join(10)
    assert not runner.worker._thread.is_alive()


def test_nobody_holds_the_engine() -> None:
    runner = Runner()
    runner.go.set()
    job = Job(1)
    runner.worker.submit([job])
    job.future.result(10)
    thread, gone = runner.worker._thread, weakref.ref(runner)
    del runner
    gc.collect()
    assert gone() is None
    thread.join(10)
    assert not thread.is_alive()


def test_the_last_reference_dies_on_the_workers_thread() -> None:
    runner = Runner()
    job = runner.hold()
    thread, go, gone = runner.worker._thread, runner.go, weakref.ref(runner)
    del runner
    assert gone() is not None, "the batch that runs holds it"
    go.set()
    assert job.future.result(10) == "first"
    thread.join(10)
    assert not thread.is_alive()
    assert gone() is None


def test_pieces_are_passed_on_once() -> None:
    pieces: list[str] = []
    job = Job(on_text=pieces.append)
    for text in ("", "ab", "ab", "a", "abc", "abcd"):
        job.emit(text)
    assert pieces == ["ab", "c", "d"]
    with pytest.raises(RuntimeError, match="the streamed text changed from 'abcd' to 'abX'"):
        job.emit("abX")
    Job().emit("nobody listens")


def test_the_load_counts_what_runs_and_what_waits(runner: Runner) -> None:
    assert runner.worker.load == (0, 0)
    first = runner.hold()
    jobs = [Job(n) for n in range(6)]
    runner.worker.submit(jobs)
    assert runner.worker.load == (1, 6)
    jobs[5].cancel()  # counts until the thread drops it
    runner.go.set()
    assert [job.future.result(10) for job in (first, *jobs[:5])] == ["first", *range(5)]
    until(lambda: runner.worker.load == (0, 0))
    assert runner.batches == [["first"], [0, 1, 2, 3], [4]]


def test_the_load_of_a_closed_queue_is_none(runner: Runner) -> None:
    runner.hold()
    waiting = Job("second")
    runner.worker.submit([waiting])
    assert runner.worker.load == (1, 1)
    runner.go.set()
    runner.worker.close()
    assert runner.worker.load == (0, 0)
    assert waiting.done
