"""What a server tells about itself: Prometheus metrics, one line of JSON for each request, attributes of traces.

None of them has texts of prompts, documents or answers.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from opentelemetry import trace
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memograft.engine import Engine
from memograft.request import Answer
from memograft.server.errors import api_error

__all__ = ["Facts", "Journal", "JsonLines", "Metrics", "facts_of"]

_log = logging.getLogger("memograft.server.access")
_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")  # others are one label
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


@dataclass
class Facts:
    """What is known about a request.

    Attributes:
        id: in the header x-request-id and in the log.
        began: `time.perf_counter()` at its arrival.
        key: name of its key; "" without keys.
        route: path of its route, e.g. "/v1/models/{model}"; "" if there is none.
        status: HTTP status; 0 if nothing was sent.
        first_token: seconds to the first piece of a stream; None if it was no stream.
        answers: number of answers.
        prompt_tokens: summed over the answers, as are the following.
        cached_tokens: of these, tokens whose keys and values were kept.
        completion_tokens: tokens of the answers.
        memorized: how many answers had a memory that was trained, or reused, and not rolled back.
        error: code or type of the error that it got.
    """

    id: str = field(default_factory=lambda: f"req_{uuid.uuid4().hex}")
    began: float = field(default_factory=time.perf_counter)
    key: str = ""
    route: str = ""
    status: int = 0
    first_token: float | None = None
    answers: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    memorized: int = 0
    error: str | None = None

    @property
    def seconds(self) -> float:
        """Time since its arrival."""
        return time.perf_counter() - self.began

    def piece(self) -> None:
        """Note that a piece of a stream is sent."""
        if self.first_token is None:
            self.first_token = self.seconds

    def answered(self, answers: Sequence[Answer]) -> None:
        """Count answers, and describe them in the request's trace."""
        for answer in answers:
            report = answer.memory
            self.answers += 1
            self.prompt_tokens += answer.usage.prompt_tokens
            self.cached_tokens += answer.usage.cached_tokens
            self.completion_tokens += answer.usage.completion_tokens
            self.memorized += report is not None and bool(report.documents) and not report.rolled_back
        span = trace.get_current_span()
        span.set_attribute("gen_ai.usage.input_tokens", self.prompt_tokens)
        span.set_attribute("gen_ai.usage.output_tokens", self.completion_tokens)
        for name in ("prefill", "memorize", "decode"):
            seconds = max((getattr(answer.timings, name) for answer in answers), default=0.0)
            span.set_attribute(f"memograft.{name}_seconds", seconds)


def facts_of(scope: Scope) -> Facts:
    """The facts of a request, from its ASGI scope."""
    found = scope["state"]["facts"]
    assert isinstance(found, Facts)
    return found


class Metrics:
    """The metrics of a server, in a registry of its own."""

    def __init__(self, engine: Engine) -> None:
        self._registry = r = CollectorRegistry()
        self._requests = Counter("memograft_requests", "Requests.", ("route", "method", "status"), registry=r)
        self._seconds = Histogram(
            "memograft_request_seconds", "Time of a request.", ("route",), buckets=_SECONDS, registry=r
        )
        self._first = Histogram(
            "memograft_first_token_seconds", "Time to the first token of a stream.", buckets=_SECONDS, registry=r
        )
        self._tokens = Counter("memograft_tokens", "Tokens of prompts and answers.", ("kind",), registry=r)
        self._memorized = Counter("memograft_memorized_answers", "Answers with a memory in effect.", registry=r)
        running = Gauge("memograft_running_rows", "Answers that are prepared or decoded.", registry=r)
        waiting = Gauge("memograft_waiting_rows", "Answers that wait for the engine.", registry=r)
        running.set_function(lambda: engine.load.running)
        waiting.set_function(lambda: engine.load.waiting)

    def count(self, facts: Facts, method: str) -> None:
        """Count a request that has ended."""
        route = facts.route or "none"
        self._requests.labels(route, method if method in _METHODS else "other", str(facts.status)).inc()
        self._seconds.labels(route).observe(facts.seconds)
        if facts.first_token is not None:
            self._first.observe(facts.first_token)
        self._tokens.labels("prompt").inc(facts.prompt_tokens)
        self._tokens.labels("cached").inc(facts.cached_tokens)
        self._tokens.labels("completion").inc(facts.completion_tokens)
        self._memorized.inc(facts.memorized)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)


class Journal:
    """Gives each request its `Facts`, and at its end logs and counts them."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        facts = Facts()
        scope.setdefault("state", {})["facts"] = facts

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                facts.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", facts.id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception as error:
            if facts.status:
                raise
            told = api_error(error)
            facts.error = told.code
            await told.response()(scope, receive, noting)
        finally:
            facts.route = getattr(scope.get("route"), "path", "")
            self._metrics.count(facts, scope["method"])
            _log.info("request", extra={"facts": _logged(facts, scope)})


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON; `extra={"facts": {...}}` adds values to it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        stamp = self.formatTime(record, "%Y-%m-%dT%H:%M:%S")
        values = {"time": f"{stamp}.{record.msecs:03.0f}", "level": record.levelname, "message": record.getMessage()}
        if record.exc_info and record.exc_info[0] is not None:  # the text of an exception may have texts of a request
            values["exception"] = record.exc_info[0].__name__
        return json.dumps({**values, **getattr(record, "facts", {})}, default=str)


def _logged(facts: Facts, scope: Scope) -> dict[str, object]:
    first = None if facts.first_token is None else round(facts.first_token * 1000, 1)
    return {
        "id": facts.id,
        "method": scope["method"] if scope["method"] in _METHODS else "other",
        "route": facts.route,
        "status": facts.status,
        "key": facts.key,
        "client": (scope.get("client") or ("",))[0],
        "milliseconds": round(facts.seconds * 1000, 1),
        "first_token_milliseconds": first,
        "answers": facts.answers,
        "prompt_tokens": facts.prompt_tokens,
        "cached_tokens": facts.cached_tokens,
        "completion_tokens": facts.completion_tokens,
        "memorized": facts.memorized,
        "error": facts.error,
    }
