"""A server's rows: clients that go free theirs, full queues, timeouts, errors in streams, graceful shutdown."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

from gates import Gate, until
from memograft import Engine, Request, Sampling
from memograft.errors import RequestCancelledError
from memograft.server import ServerSettings
from served import Served, served

ASKED: Any = [{"role": "user", "content": "Who wrote it?"}]
LONG: dict[str, Any] = {"model": "m", "messages": ASKED, "max_tokens": 200}


@contextmanager
def held(engine: Engine, free: int = 0) -> Iterator[Gate]:
    """Hold the engine's loop inside a pass, from the `free`-th token of a request of our own on."""
    gate = Gate(free)
    stream = engine.stream(Request("Hold.", sampling=Sampling(230), processors=[gate]))
    reader = threading.Thread(target=lambda: [None for _ in stream])
    reader.start()
    try:
        if not free:
            assert gate.waiting.wait(20)
        yield gate
    finally:
        gate.go.set()
        reader.join()


def limits(**changes: Any) -> ServerSettings:
    return ServerSettings(model="m", timeout=changes.pop("timeout", 60), **changes)


def jobs(engine: Engine) -> list[Any]:
    return [job for job in engine._worker._running if "Hold." not in str(job.payload.request.messages)]


def cancelled(job: Any) -> bool:
    return job.done and isinstance(job.future.exception(), RequestCancelledError)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_frees_its_row(make_engine: Any, stream: bool) -> None:
    """The engine is held while the client goes, so that the row cannot have ended by itself."""
    engine = make_engine(max_batch=4)
    with served(engine, limits()) as server, held(engine, free=10**6) as gate:
        body = json.dumps({**LONG, "stream": stream}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            if stream:
                assert client.recv(1)  # the answer has begun
            until(lambda: bool(jobs(engine)))
            gate.free = 0
            assert gate.waiting.wait(20)
            (job,) = jobs(engine)
            assert not job.done
        until(lambda: cancelled(job))
        gate.go.set()
        until(lambda: engine.load.running <= 1)


@pytest.mark.parametrize("stream", [True, False])
def test_a_task_that_is_cancelled_frees_its_row(make_engine: Any, stream: bool) -> None:
    engine = make_engine(max_batch=4)

    async def gone(server: Served) -> Any:
        async with server.async_client() as client:
            call = asyncio.ensure_future(client.chat.completions.create(**LONG, stream=stream))
            while not jobs(engine):
                await asyncio.sleep(0)
            gate.free = 0
            await asyncio.to_thread(gate.waiting.wait, 20)
            (job,) = jobs(engine)
            call.cancel()
            if stream and not call.cancelled():
                await asyncio.wait({call})
        return job

    with served(engine, limits()) as server, held(engine, free=10**6) as gate:
        job = asyncio.run(gone(server))
        until(lambda: cancelled(job))
        gate.go.set()
        until(lambda: engine.load.running <= 1)


def test_a_full_queue_is_429_with_the_time_to_come_back(make_engine: Any) -> None:
    engine = make_engine(max_batch=1)
    with served(engine, limits(max_queue=1)) as server, server.client() as client:
        with held(engine) as gate:
            results: list[Any] = []
            ask = lambda: results.append(client.chat.completions.create(model="m", messages=ASKED, max_tokens=3))  # noqa: E731
            first = [threading.Thread(target=ask) for _ in range(2)]
            for thread in first:
                thread.start()
            until(lambda: engine.load.waiting == 2)
            with pytest.raises(
                openai.RateLimitError, match="2 answers are in progress, and the queue ends at 2"
            ) as caught:
                client.chat.completions.create(model="m", messages=ASKED)
            assert caught.value.code == "rate_limit_exceeded"
            assert int(caught.value.response.headers["retry-after"]) >= 1
            with server.http() as http:
                assert "memograft_waiting_rows 2.0" in http.get("/metrics").text
                assert "memograft_running_rows 1.0" in http.get("/metrics").text
            gate.go.set()
            for thread in first:
                thread.join()
        assert [result.usage.completion_tokens for result in results] == [3, 3]
        assert client.chat.completions.create(model="m", messages=ASKED, max_tokens=3)


def test_openai_waits_and_comes_back(make_engine: Any) -> None:
    engine = make_engine(max_batch=1)
    with served(engine, limits(max_queue=0)) as server, server.client(max_retries=3) as client:
        stream = client.chat.completions.create(**LONG, stream=True)
        assert client.chat.completions.create(model="m", messages=ASKED, max_tokens=2).usage
        assert len(list(stream)) > 1


def test_an_answer_that_takes_too_long_is_504(make_engine: Any) -> None:
    engine = make_engine()
    with served(engine, limits(timeout=0.2)) as server, server.client() as client, held(engine):
        with pytest.raises(
            openai.InternalServerError, match="`timeout` passed; allow more time or fewer `max_tokens`"
        ) as e:
            client.chat.completions.create(**LONG)
        assert (e.value.status_code, e.value.code) == (504, "request_timeout")


def test_an_error_in_a_stream_is_an_event_and_the_stream_ends(make_engine: Any) -> None:
    engine = make_engine(max_batch=4)
    with served(engine, limits(timeout=1.5)) as server, held(engine, free=10**6) as gate, server.http() as http:
        with http.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}) as response:
            lines = response.iter_lines()
            first = next(lines)
            gate.free = 0
            rest = [first, *lines]
        assert response.status_code == 200
        assert rest[-2] == "data: [DONE]"
        error = json.loads(rest[-4].removeprefix("data: "))["error"]
        assert (error["code"], error["type"]) == ("request_timeout", "timeout_error")
        gate.go.set()
    engine.close()


def test_clients_see_the_error_in_a_stream(make_engine: Any) -> None:
    engine = make_engine(max_batch=4)
    with served(engine, limits(timeout=1.5)) as server, held(engine, free=10**6) as gate, server.client() as client:
        chunks = client.chat.completions.create(**LONG, stream=True)
        assert next(chunks)
        gate.free = 0
        with pytest.raises(openai.APIError, match="`timeout` passed"):
            list(chunks)
        gate.go.set()


def test_streams_are_finished_at_the_end(make_engine: Any) -> None:
    """The server is told to end in the middle of a stream. It takes no connections any more, and the stream ends."""
    engine = make_engine(max_batch=4)
    with served(engine, limits()) as server, held(engine, free=10**6) as gate:
        with server.http() as http, http.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}) as r:
            lines = r.iter_lines()
            got = [next(lines)]
            gate.free = 0
            assert gate.waiting.wait(20)
            server.stop()
            until(lambda: not server._server.servers[0].is_serving())
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{server.url}/health")
            gate.go.set()
            got += lines
        assert got[-2:] == ["data: [DONE]", ""]
        chunks = [json.loads(line.removeprefix("data: ")) for line in got[:-2] if line]
        assert chunks[-1]["choices"][0]["finish_reason"] in ("length", "stop")


def test_a_closed_engine(make_engine: Any) -> None:
    engine = make_engine()
    with served(engine, limits()) as server, server.client() as client, server.http() as http:
        assert http.get("/ready").json() == {"status": "ready"}
        engine.close()
        assert (http.get("/ready").status_code, http.get("/health").status_code) == (503, 200)
        with pytest.raises(openai.InternalServerError, match="the server is ending") as caught:
            client.chat.completions.create(**LONG)
        assert caught.value.status_code == 503
        with pytest.raises(openai.InternalServerError, match="the server is ending"):
            client.chat.completions.create(**LONG, stream=True)


def test_an_error_that_nobody_foresaw(make_engine: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """The client gets 500 in OpenAI's form, and neither it nor the log gets the exception's text."""
    engine = make_engine()

    def broken(*_: Any) -> Any:
        raise RuntimeError("the secret text of a document")

    monkeypatch.setattr(engine._session, "_memorized", broken)
    with served(engine, limits()) as server, server.client() as client:
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError, match="an error inside the server") as caught:
                client.chat.completions.create(**LONG, stream=stream)
            assert caught.value.code == "internal_error"
            assert "secret" not in str(caught.value)
    assert "secret" not in caplog.text
    (first, *_) = [r for r in caplog.records if r.message == "internal error"]
    assert first.facts["exception"] == "RuntimeError"
    assert "broken" in first.facts["traceback"]


def test_many_clients_get_the_answers_of_single_runs(tiny: Engine) -> None:
    questions = [f"What is the capital of {c}?" for c in ("France", "Australia", "Japan", "Italy", "Spain", "Peru")]
    expected = {q: tiny.answer(q, sampling=Sampling(24)).text for q in questions}

    async def all_of_them(server: Served) -> list[tuple[str, str]]:
        async with server.async_client() as client:

            async def one(n: int) -> tuple[str, str]:
                question = questions[n % len(questions)]
                how: Any = {"model": "m", "messages": [{"role": "user", "content": question}], "max_tokens": 24}
                if n % 2:
                    return question, str((await client.chat.completions.create(**how)).choices[0].message.content)
                stream = await client.chat.completions.create(**how, stream=True)
                if n % 10 == 4:  # goes in the middle
                    async for _ in stream:
                        break
                    await stream.close()
                    return question, expected[question]
                return question, "".join([c.choices[0].delta.content or "" async for c in stream])

            return list(await asyncio.gather(*map(one, range(48))))

    with served(tiny, limits()) as server:
        for question, said in asyncio.run(all_of_them(server)):
            assert said == expected[question]
    until(lambda: tiny.load == (0, 0))
