"""`RemoteEngine` alone: its life, its protocols, and connections that break. The integrations' suite has the rest."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import openai
import pytest
from transformers import TemperatureLogitsWarper

from conformance.fixtures import nonsense
from gates import until
from memograft import (
    Bank,
    Cad,
    Document,
    Dola,
    Engine,
    FastMem,
    Gist,
    Kept,
    MemoryReport,
    RemoteEngine,
    Request,
    Sampling,
)
from memograft.client.plain import Plain
from memograft.client.protocol import Assembled
from memograft.client.wire import answer_from_json, answer_to_json
from memograft.errors import EngineClosedError, MissingExtraError, RequestTimeoutError, ServerError, SettingsError
from memograft.memory.served import AS_SERVED, ServedMemory, served_memory
from served import Served, served
from tokenizers_ import make

QUESTION = "What is the capital of Australia?"
PAGE = Document("The capital of Australia is Lisbon.", "atlas", {"year": 2020})


@pytest.fixture(scope="module")
def server(tiny: Engine) -> Iterator[Served]:
    with served(tiny) as server:
        yield server


@pytest.fixture(scope="module")
def random_engine() -> Iterator[Engine]:
    """Generates until the answer is as long as it may be."""
    with Engine(nonsense(), make("bpe")) as engine:
        yield engine


def connections() -> int:
    """The number of threads of clients."""
    return sum(thread.name == "memograft client" for thread in threading.enumerate())


@pytest.fixture
def far(server: Served) -> Iterator[RemoteEngine]:
    with RemoteEngine(f"{server.url}/v1", "tiny") as far:
        yield far


def test_an_answer_is_that_of_the_engine(far: RemoteEngine, tiny: Engine) -> None:
    request = Request(QUESTION, documents=[PAGE], memory=FastMem(), logprobs=3)
    near = tiny.answer(request)
    found = far.answer(request)
    assert near.memory is not None
    assert found.memory is not None
    assert replace(found.memory, seconds=0.0) == replace(near.memory, seconds=0.0)
    same = ("text", "token_ids", "prompt_ids", "finish_reason", "usage", "documents", "dropped", "truncated")
    assert all(getattr(found, name) == getattr(near, name) for name in same)
    assert [token.token_id for token in found.logprobs] == list(near.token_ids)
    with far.stream(request) as stream:
        pieces = list(stream)
    assert stream.answer is not None
    assert ("".join(pieces), stream.answer.token_ids) == (near.text, near.token_ids)
    assert (far.is_memograft, far.max_length, far.takes_tools, far.takes_system) == (True, 512, False, True)


@pytest.mark.parametrize(
    "processors", [[Cad(0.5)], [Cad("adaptive"), Dola("low")], [Dola((0, 1))]], ids=["cad", "both", "layers"]
)
def test_contrasts_are_those_of_the_server(far: RemoteEngine, tiny: Engine, processors: list[Cad | Dola]) -> None:
    request = Request(QUESTION, documents=[PAGE], processors=processors, logprobs=0)
    near, found = tiny.answer(request), far.answer(request)
    logprobs = [[token.logprob for token in answer.logprobs] for answer in (near, found)]
    assert (found.text, logprobs[1]) == (near.text, pytest.approx(logprobs[0], abs=1e-4))
    plain = [token.logprob for token in tiny.answer(replace(request, processors=())).logprobs]
    assert logprobs[0] != pytest.approx(plain, abs=1e-3), "they change nothing: the test shows nothing"


def test_another_server_has_no_contrasts() -> None:
    with pytest.raises(SettingsError, match=r"act in the engine's process, which a server is not, got Dola\(layers="):
        Plain("base", None).body(Request("Who?", processors=[Dola()]))


def test_answers_of_several_event_loops_and_of_a_batch(far: RemoteEngine) -> None:
    async def ask() -> str:
        return (await far.aanswer(QUESTION)).text

    assert {asyncio.run(ask()) for _ in range(3)} == {"The capital of Australia is Canberra."}
    results = far.answer_batch([Request(QUESTION), Request("x " * 900)] * 2, return_exceptions=True)
    assert [isinstance(result, Exception) for result in results] == [False, True, False, True]


def test_numbers_that_are_not_finite_stay_so(tiny: Engine) -> None:
    answer = replace(tiny.answer(QUESTION), memory=MemoryReport(reason="no document", losses=(float("nan"),)))
    report = answer_from_json(answer_to_json(answer)).memory
    assert report is not None
    assert str(report) == str(answer.memory)  # NaN is not equal to itself


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        (
            Request("Who?", processors=[Cad(), TemperatureLogitsWarper(2.0)]),
            "`processors` .* act in the engine's process, which a server is not, got <.*Warper",
        ),
        (
            Request("Who?", processors=[Cad(), Cad(1)]),
            r"may hold one Cad, got Cad\(alpha=1, .*\) too; keep one of them",
        ),
        (
            Request("Who?", processors=[Cad(1, 0.5)]),
            r"may hold Cad without `agreed`, got Cad\(alpha=1, agreed=0.5\); use FastMem\(cad=...\)",
        ),
        (Request("Who?", memory=3), "`memory` of a request to a server must be FastMem.*, got int, which belongs to"),  # type: ignore[arg-type]
    ],
)
def test_what_needs_an_engine_of_this_process(far: RemoteEngine, request_: Request, match: str) -> None:
    with pytest.raises(SettingsError, match=match):
        far.answer(request_)


def test_a_bank_and_a_handle_of_this_process(far: RemoteEngine, tiny: Engine, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="`bank` is a folder of this machine, and the server has its own"):
        far.answer(Request("Who?", bank=Bank(tmp_path)))
    handle = tiny.memorize([PAGE])
    with pytest.raises(
        SettingsError, match="got MemoryHandle, which belongs to an engine of one process; memorize the"
    ):
        far.answer(QUESTION, memory=handle)
    for value in (handle, Gist("tiny"), 3, ""):
        with pytest.raises(
            SettingsError, match="`memory` with `base_url` must be what memorizing on the server returned"
        ):
            served_memory(value)
    assert served_memory("mem_1") == ServedMemory("mem_1")
    assert served_memory(Kept()) == Kept()


def test_it_is_closed_once_and_for_all(server: Served) -> None:
    before = connections()
    far = RemoteEngine(f"{server.url}/v1", "tiny")
    assert not far.closed
    far.close()
    far.close()
    assert far.closed
    assert connections() == before
    for call in (lambda: far.answer(QUESTION), lambda: far.memorize([PAGE])):
        with pytest.raises(EngineClosedError, match="the connection to the server is closed, or of another process"):
            call()
    unused = RemoteEngine(f"{server.url}/v1", "tiny")
    del unused
    gc.collect()
    until(lambda: connections() == before)
    with pytest.raises(ServerError, match="has no model 'other'; it has 'tiny'"):
        RemoteEngine(f"{server.url}/v1", "other")
    until(lambda: connections() == before)


def test_closing_ends_what_is_answered(random_engine: Engine) -> None:
    with served(random_engine) as server:
        far = RemoteEngine(f"{server.url}/v1", "tiny")
        stream = far.stream(Request("Who?", sampling=Sampling(200)))
        next(stream)
        far.close()
        with pytest.raises(EngineClosedError, match="was closed before this request was answered"):
            list(stream)
        until(lambda: random_engine.load.running == 0)


def test_time_that_is_up_frees_the_servers_row(random_engine: Engine) -> None:
    with served(random_engine) as server, RemoteEngine(f"{server.url}/v1", "tiny") as far:
        request = Request("Who?", sampling=Sampling(200), timeout=1e-4)
        with pytest.raises(RequestTimeoutError, match="the request's `timeout` passed"):
            far.answer(request)
        until(lambda: random_engine.load.running == 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_has_none(far: RemoteEngine) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0 if far.closed else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert not far.closed


def test_wrong_addresses_and_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="`base_url` must begin with http:// or https://, got 'localhost:8000'"):
        RemoteEngine("localhost:8000", "tiny")
    with pytest.raises(SettingsError, match="`max_batch` must be at least 1, got 0"):
        RemoteEngine("http://localhost:1/v1", "tiny", max_batch=0)
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'memograft\[client\]'"):
        RemoteEngine("http://localhost:1/v1", "tiny")


def answers_once(response: bytes) -> tuple[str, threading.Thread]:
    """A socket that answers GET /v1/models as vLLM, and everything else with these bytes, and then hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))
    models = b'{"object":"list","data":[{"id":"m","object":"model","created":1,"owned_by":"vllm"}]}'

    def serve() -> None:
        with listener:
            for body in (models, response):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: "
                    kind = b"application/json" if body is models else b"text/event-stream"
                    length = len(body) if body is models else 10_000  # more than comes
                    connection.sendall(head + kind + b"\r\nContent-Length: %d\r\n\r\n" % length + body)

    thread = threading.Thread(target=serve)
    thread.start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/v1", thread


def test_a_stream_that_breaks_off() -> None:
    piece = b'data: {"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Par"}}]}\n\n'
    url, thread = answers_once(piece)
    with RemoteEngine(url, "m", max_retries=0) as far:
        with pytest.raises(SettingsError, match="does not tell the window of 'm'"):
            _ = far.max_length
        stream = far.stream(Request("Who?"))
        assert next(stream) == "Par"
        with pytest.raises(
            ServerError, match=r"the answer of the server at .* broke off, or is in another form"
        ) as caught:
            list(stream)
        assert caught.value.status is None
        assert stream.answer is None
    thread.join()


def test_our_server_by_the_plain_protocol_alone(server: Served, tiny: Engine) -> None:
    plain = Plain("tiny", None)
    with server.client() as client:
        for request in (
            Request(QUESTION, documents=[PAGE], memory=None, logprobs=2),
            Request(QUESTION, memory=AS_SERVED, sampling=Sampling(30, stop=[" Can"], seed=0, temperature=0.7)),
            Request(QUESTION, json_schema={"type": "object", "properties": {"a": {"type": "boolean"}}}),
        ):
            body = plain.body(request)
            assert not body.keys() & {"documents", "memory", "raw", "query", "overflow"}
            whole = client.post("/chat/completions", body=body, cast_to=openai.types.chat.ChatCompletion)
            found = plain.answer(whole.to_dict(), request, 1.0)
            so_far = Assembled()
            for chunk in client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}):
                so_far.add(chunk.to_dict())
            expected = tiny.answer(replace(request, memory=None))
            for answer in (found, plain.answer(so_far.completion, request, 1.0)):
                assert (answer.text, answer.usage, answer.finish_reason) == (
                    expected.text,
                    expected.usage,
                    expected.finish_reason,
                )
                assert [token.text for token in answer.logprobs] == [token.text for token in expected.logprobs]


def test_raw_requests(server: Served) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    base = {"model": "tiny", "messages": messages}
    with server.http() as client:
        for more, said in (
            ({"json_optional": True}, "`json_optional` is for `raw` requests, got it without; leave it out"),
            ({"raw": True, "tool_choice": "auto"}, "`tool_choice` has no meaning with `raw`: the client parses the"),
            ({"raw": True, "parallel_tool_calls": True}, "`parallel_tool_calls` has no meaning with `raw`"),
            ({"raw": True, "response_format": {"type": "json_object"}}, "`response_format` of a `raw` request must be"),
        ):
            response = client.post("/v1/chat/completions", json=base | more)
            assert response.status_code == 400
            assert said in response.json()["error"]["message"]
        told = client.post("/v1/chat/completions", json={**base, "raw": True, "n": 2, "memory": None}).json()
        texts = [choice["memograft"]["answer"]["text"] for choice in told["choices"]]
        assert texts == ["The capital of Australia is Canberra."] * 2
        late = client.post("/v1/chat/completions", json={**base, "messages": [{"role": "user", "content": "x " * 900}]})
        error = late.json()["error"]
        assert error["tokens"] > error["limit"] > 0
