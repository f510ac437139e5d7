"""What a server does with requests that no client library sends: broken, oversized, slow, made from its own schema."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import CHECKS, load_all_checks

from memograft import Engine, LexicalEmbedder
from memograft.server import ServerSettings
from served import Served, served

SETTINGS = ServerSettings(model="tiny", embedding_model="lexical", timeout=20, max_body=20_000, read_timeout=0.5)
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(tiny: Engine) -> Iterator[Served]:
    with served(tiny, SETTINGS, embedder=LexicalEmbedder(64)) as running:
        yield running


def raw(server: Served, data: bytes) -> bytes:
    """What a connection gives until the server closes it."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(data)
        got = b""
        while piece := connection.recv(65536):
            got += piece
    return got


def post(body: bytes, *headers: str, path: str = CHAT, kind: str = "application/json") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", "Connection: close", *headers]
    if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def parts(response: bytes) -> tuple[int, dict[str, Any]]:
    head, _, body = response.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


def alive(server: Served) -> None:
    with server.client() as client:
        said = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "Who?"}], max_tokens=2
        )
    assert said.usage is not None
    assert said.usage.completion_tokens == 2


BODIES: list[tuple[bytes, str]] = [
    (b"", "the body must be a JSON object"),
    (b"{", "the body must be JSON, got"),
    (b"null", "the body must be a JSON object"),
    (b"[1]", "the body must be a JSON object"),
    (b'"text"', "the body must be a JSON object"),
    (
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
        "the body cannot be read as JSON in UTF-8",
    ),
    (b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "finite number"),
    (b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5000 + b"}", "body"),
    (b'{"model": "tiny", "messages": ' + b"[" * 9000 + b"]" * 9000 + b"}", ""),
    (b'{"model": "\\ud800", "messages": [{"role": "user", "content": "x"}]}', "the model '\\ud800' does not exist"),
    (b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "\\udfff": 1}', "the body must be"),
]


@pytest.mark.parametrize(("body", "message"), BODIES, ids=lambda value: str(value)[:30])
def test_broken_bodies(server: Served, body: bytes, message: str) -> None:
    status, error = parts(raw(server, post(body)))
    assert status in (400, 404)
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"


def test_a_surrogate_in_a_question_is_answered(server: Served) -> None:
    body = b'{"model": "tiny", "messages": [{"role": "user", "content": "Who? \\ud800"}], "max_tokens": 3}'
    assert raw(server, post(body)).startswith(b"HTTP/1.1 200")


def test_a_body_of_another_kind(server: Served) -> None:
    """Also what a web page may send to another site without asking it."""
    body = b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}]}'
    assert parts(raw(server, post(body, kind="text/plain")))[0] == 400


def test_oversized_bodies(server: Served) -> None:
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "x" * 30_000}]}).encode()
    status, error = parts(raw(server, post(body)))
    assert (status, error["code"]) == (413, "body_too_large")
    assert f"may have 20000 bytes, got {len(body)} bytes" in error["message"]
    status, error = parts(raw(server, post(b"", "Content-Length: 999999999999")))
    assert (status, error["code"]) == (413, "body_too_large")
    chunk = b"%x\r\n%b\r\n" % (len(body), body)
    status, error = parts(raw(server, post(chunk, "Transfer-Encoding: chunked")))
    assert (status, error["code"]) == (413, "body_too_large")
    alive(server)


def test_bodies_that_do_not_come(server: Served) -> None:
    status, error = parts(raw(server, post(b'{"model":', "Content-Length: 1000")))
    assert (status, error["code"]) == (408, "body_timeout")
    assert "within 0.5 seconds, got 9 bytes" in error["message"]
    alive(server)


@pytest.mark.parametrize(
    "start",
    [b"", b"POST /v1/chat/comp", b"POST / HTTP/1.1\r\nHost: localhost\r\nX: 1\r\n"],
    ids=["nothing", "line", "header"],
)
def test_headers_that_do_not_come(server: Served, start: bytes) -> None:
    """The connection is closed in time, the first one and one that was used before."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(start)
        assert connection.recv(100) == b""
    if start:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            got = b""
            while not got.endswith(b'{"status":"ok"}'):
                got += connection.recv(1000)
            connection.sendall(start)
            assert connection.recv(100) == b""
    alive(server)


def test_what_is_not_http(server: Served) -> None:
    assert raw(server, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200).startswith(b"HTTP/1.1 400")
    assert raw(server, b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 4")
    alive(server)


def test_routes_that_are_not_there(server: Served) -> None:
    with server.http() as http:
        for method, path, status in (("GET", "/v2", 404), ("GET", CHAT, 405), ("DELETE", "/v1/models", 405)):
            response = http.request(method, path)
            assert response.status_code == status
            assert f"got {method} '{path}'" in response.json()["error"]["message"]
        assert http.get(CHAT).headers["allow"] == "POST"
        assert http.get("/docs").status_code == 404


# A schema has no words for windows, models' names and combinations of fields.
LEFT_OUT = ("positive_data_acceptance", "negative_data_rejection")
load_all_checks()


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_requests_made_from_the_openapi_document(server: Served, mode: schemathesis.GenerationMode) -> None:
    """Valid and invalid ones: the statuses, types and bodies of the responses are those that the document names."""
    checks = [CHECKS.get_one(name) for name in LEFT_OUT]
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [result.ok() for result in document.get_all_operations()]
    assert len(operations) == 23
    for operation in operations:

        @settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def hold(case: Any) -> None:
            if isinstance(case.body, dict):  # mostly for a model that is there, and with short answers
                if len(str(case.body.get("model"))) % 4:
                    case.body["model"] = "lexical" if "embeddings" in case.path else "tiny"
                if "embeddings" not in case.path and mode is schemathesis.GenerationMode.POSITIVE:
                    case.body |= {"max_tokens": 4, "n": 1, "max_completion_tokens": None}
                    if "completions" in case.path and "chat" not in case.path:
                        del case.body["max_completion_tokens"]
            case.call_and_validate(excluded_checks=checks)

        try:
            hold()
        except Unsatisfiable:  # a route without parameters has no invalid requests
            assert not operation.body
