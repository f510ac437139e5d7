"""Metrics, logs and traces of a server, none of which has a text of a request; the command `memograft serve`."""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gates import until
from memograft import Engine, FastMem, VectorStore
from memograft.cli.serve_app import serve
from memograft.errors import SettingsError
from memograft.server import ServerSettings
from memograft.server.journal import JsonLines
from served import Served, served

SECRET = "Xylophone"
QUESTION = f"What is the capital of Australia, {SECRET}?"
BODY: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": QUESTION}],
    "documents": [{"text": f"The capital of Australia is Lisbon, {SECRET}."}],
}


@pytest.fixture
def server(tiny: Engine) -> Iterator[Served]:
    with served(tiny, ServerSettings(model="tiny", memory=FastMem(relevance=None), timeout=60)) as running:
        yield running


def value(text: str, name: str) -> float:
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[-1])


def test_metrics(server: Served) -> None:
    with server.http() as http:
        whole = http.post("/v1/chat/completions", json=BODY).json()["usage"]
        http.post("/v1/chat/completions", json={**BODY, "stream": True})
        http.post("/v1/chat/completions", json={**BODY, "model": SECRET})
        http.get(f"/v1/models/{SECRET}")
        http.get(f"/{SECRET}")
        text = http.get("/metrics").text
    requests = 'memograft_requests_total{method="POST",route="/v1/chat/completions",status='
    assert (value(text, requests + '"200"}'), value(text, requests + '"404"}')) == (2, 1)
    assert value(text, 'memograft_requests_total{method="GET",route="/v1/models/{model:path}",status="404"}') == 1
    assert value(text, 'memograft_requests_total{method="GET",route="none",status="404"}') == 1
    assert value(text, 'memograft_tokens_total{kind="completion"}') == 2 * whole["completion_tokens"]
    assert value(text, 'memograft_tokens_total{kind="prompt"}') == 2 * whole["prompt_tokens"]
    assert value(text, "memograft_memorized_answers_total") == 2
    assert value(text, "memograft_first_token_seconds_count") == 1
    assert (value(text, "memograft_running_rows"), value(text, "memograft_waiting_rows")) == (0, 0)
    assert SECRET not in text


def test_logs(server: Served, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("httpx", "httpcore", "openai"):  # the client's
        caplog.set_level(logging.CRITICAL, logger=name)
    caplog.set_level(logging.DEBUG)
    with server.http() as http:
        sent = http.post("/v1/chat/completions", json=BODY)
        http.post("/v1/chat/completions", json={**BODY, "temperature": SECRET})
        http.post(f"/{SECRET}?{SECRET}", json=BODY)
    until(lambda: sum(record.name == "memograft.server.access" for record in caplog.records) == 3)
    lines = [json.loads(JsonLines().format(r)) for r in caplog.records if r.name == "memograft.server.access"]
    assert [line["status"] for line in lines] == [200, 400, 404]
    assert lines[0]["id"] == sent.headers["x-request-id"]
    assert lines[0]["completion_tokens"] == sent.json()["usage"]["completion_tokens"]
    assert (lines[0]["route"], lines[0]["memorized"], lines[1]["error"]) == ("/v1/chat/completions", 1, "invalid_value")
    assert lines[0]["milliseconds"] > 0
    assert SECRET not in "".join(JsonLines().format(record) for record in caplog.records)


def test_the_format_of_lines() -> None:
    try:
        raise ValueError(SECRET)
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "it %s", ("failed",), sys.exc_info())
    line = json.loads(JsonLines().format(record))
    assert (line["message"], line["level"], line["exception"]) == ("it failed", "ERROR", "ValueError")
    assert SECRET not in str(line)


def test_traces(server: Served) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)  # once for the process
    with server.http() as http:
        used = http.post("/v1/chat/completions", json=BODY).json()["usage"]
        http.post("/v1/chat/completions", json={**BODY, "temperature": SECRET})
    spans = exporter.get_finished_spans()
    counted = [s for s in spans if s.attributes and "gen_ai.usage.output_tokens" in s.attributes]
    assert counted
    attributes = dict(counted[0].attributes or {})
    assert attributes["gen_ai.usage.output_tokens"] == used["completion_tokens"]
    assert float(str(attributes["memograft.memorize_seconds"])) > 0
    assert SECRET not in "".join(span.to_json() for span in spans)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": ""}, "`model` must be a name, got ''"),
        ({"max_queue": -1}, "`max_queue` must be a whole number of at least 0, got -1"),
        ({"max_body": 10}, "`max_body` must be a whole number of at least 1024, got 10"),
        ({"timeout": 0}, "`timeout` must be a positive number of seconds, got 0"),
        ({"temperature": 3}, r"`temperature` must be 0 \(greedy\) to 2, got 3"),
    ],
)
def test_settings_are_checked(values: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ServerSettings(**values)


def test_the_commands_defaults_are_those_of_the_settings() -> None:
    options = inspect.signature(serve).parameters
    own = {field.name: field.default for field in dataclasses.fields(ServerSettings)}
    shared = own.keys() & options.keys() - {"model"}
    assert {name: options[name].default for name in shared} == {name: own[name] for name in shared}
    left = {"model", "embedding_model", "memory", "default_max_tokens", "max_inputs"}
    assert own.keys() - shared == left


def test_the_command(tmp_path: Path) -> None:
    """A process answers, and after SIGTERM finishes a stream, ends its log and exits with code 0."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from memograft.cli import main; main()", "serve", "--port", str(port)]
    with VectorStore(path=tmp_path / "Manual") as store:
        store.add(["Press the red key."])
    folders = {"--bank": "bank", "--stores": "stores", "--store": "Manual"}
    options = [
        *(part for name, folder in folders.items() for part in (name, str(tmp_path / folder))),
        "--embedder",
        "lexical",
        "--name",
        "mine",
        "--max-batch",
        "4",
        "--max-stores",
        "1",
    ]
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    lines: list[str] = []
    ready = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if f"serving mine at http://127.0.0.1:{port}/v1" in line:
                ready.set()
        ready.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert ready.wait(60)
        assert process.poll() is None, lines
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=8) as client:
            assert [model.id for model in client.models.list()] == ["mine", "lexical"]
            stores = httpx.get(f"http://127.0.0.1:{port}/v1/stores").json()["data"]
            assert [(store["name"], store["documents"]) for store in stores] == [("Manual", 1)]
            made = [httpx.post(f"http://127.0.0.1:{port}/v1/stores", json={"name": name}) for name in ("a", "b")]
            assert [response.status_code for response in made] == [201, 409]
            messages: Any = [{"role": "user", "content": QUESTION}]
            documents = {"documents": BODY["documents"], "memory": {"kind": "fastmem", "relevance": None}}
            for reused in (False, True):
                said = client.chat.completions.create(model="mine", messages=messages, extra_body=documents)
                assert said.memograft["reused"] == reused  # type: ignore[attr-defined]
            stream = client.chat.completions.create(
                model="mine", messages=messages, max_tokens=400, logit_bias={"2": -100}, stream=True
            )
            next(stream)
            process.send_signal(signal.SIGTERM)
            assert list(stream)[-1].choices[0].finish_reason in ("stop", "length")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        reader.join()
        assert process.stderr is not None
        process.stderr.close()
    logged = [json.loads(line) for line in lines if line.startswith("{")]
    assert {line["status"] for line in logged} == {200, 201, 409}
    assert not any(re.search(rf"{SECRET}|Traceback", line) for line in lines)
