"""Servers on loopback: Memograft's, and stand-ins that speak OpenAI's protocol as vLLM does, with real engines."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict

from memograft import Answer, Engine, Request, Sampling
from memograft.chat import finish_reason_of, logprobs_of, message_of, plan, read_conversation, usage_of
from memograft.errors import PromptTooLongError
from memograft.server import InBackground, ServerSettings, create_app

__all__ = ["Servers", "servers"]


class Body(BaseModel):
    """The fields of OpenAI's protocol, and of vLLM's sampling. Others are refused."""

    model_config = ConfigDict(extra="forbid")

    model: str
    messages: list[dict[str, Any]]
    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: list[str] = []
    logprobs: bool = False
    top_logprobs: int = 0
    tools: list[dict[str, Any]] = []
    tool_choice: str = "none"
    response_format: dict[str, Any] | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None


def stand_in(engines: Mapping[str, Engine], tells_window: bool = True) -> FastAPI:
    """An application with a model for each engine; the first is the base model, the others are its adapters."""
    app = FastAPI()
    app.state.settings = ServerSettings()  # for InBackground

    @app.get("/v1/models")
    async def models() -> Any:
        base = next(iter(engines))
        about = {"object": "model", "created": 1, "owned_by": "vllm", "parent": None}
        window = {"max_model_len": engines[base].max_length} if tells_window else {}
        # Adapters that a plugin finds are not listed before their first use.
        return {"object": "list", "data": [{"id": base, **about, **window}]}

    @app.post("/v1/chat/completions", response_model=None)
    async def completions(body: Body) -> Any:
        if body.model not in engines:
            return _error(404, f"The model `{body.model}` does not exist.", 404)
        engine = engines[body.model]
        how = plan(engine, body.tools, body.tool_choice, body.response_format)
        told = read_conversation(
            body.messages, takes_tools=engine.takes_tools, takes_system=engine.takes_system, plan=how
        )
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop")
        request = Request(
            messages=told.messages,
            sampling=Sampling(body.max_tokens, **{name: getattr(body, name) for name in names}),
            logprobs=body.top_logprobs if body.logprobs else None,
            **how.request(),
        )
        head = {"id": "c-1", "created": 1, "model": body.model}

        def choice(answer: Answer) -> dict[str, Any]:
            reading = how.read(engine, answer)
            about = {"finish_reason": finish_reason_of(answer, reading), "logprobs": logprobs_of(answer)}
            return {"index": 0, "message": message_of(reading), **about}

        async def chunks() -> AsyncIterator[str]:
            async with engine.astream(request) as pieces:
                async for piece in pieces:
                    if how.reads == "text":
                        yield _event({**head, "choices": [{"index": 0, "delta": {"content": piece}}]})
            assert pieces.answer is not None
            last = choice(pieces.answer)
            message = last.pop("message")
            calls = message.get("tool_calls", ())
            delta: dict[str, Any] = {} if how.reads == "text" else {"content": message["content"]}
            for n, call in enumerate(calls):  # name and arguments come in pieces
                first = {**call, "index": n, "function": {**call["function"], "arguments": ""}}
                yield _event({**head, "choices": [{"index": 0, "delta": {"tool_calls": [first]}}]})
                rest = {"index": n, "function": {"arguments": call["function"]["arguments"]}}
                yield _event({**head, "choices": [{"index": 0, "delta": {"tool_calls": [rest]}}]})
            yield _event({**head, "choices": [{**last, "delta": delta}]})
            yield _event({**head, "choices": [], "usage": usage_of(pieces.answer)})
            yield "data: [DONE]\n\n"

        if body.stream:
            return StreamingResponse(chunks(), media_type="text/event-stream")
        try:
            answer = await engine.aanswer(request)
        except PromptTooLongError as error:
            return _error(400, f"This model's maximum context length is {engine.max_length} tokens. {error}", 400)
        return {**head, "object": "chat.completion", "choices": [choice(answer)], "usage": usage_of(answer)}

    return app


def _event(values: Mapping[str, Any]) -> str:
    return f"data: {json.dumps({'object': 'chat.completion.chunk', **values})}\n\n"


def _error(status: int, message: str, code: int) -> JSONResponse:
    """An error in vLLM's form, whose code is a number."""
    return JSONResponse({"error": {"message": message, "type": "BadRequestError", "param": None, "code": code}}, status)


class Servers:
    """Servers of Memograft and stand-ins for others, each started at its first use."""

    def __init__(self) -> None:
        self._running: dict[str, InBackground] = {}

    def url(self, engine: Engine, model: str) -> str:
        """The `base_url` of a server of Memograft."""
        if model not in self._running:
            self._running[model] = InBackground(create_app(engine, ServerSettings(model=model)))
        return f"{self._running[model].url}/v1"

    def other(self, name: str, **engines: Engine) -> str:
        """The `base_url` of a stand-in."""
        if name not in self._running:
            self._running[name] = InBackground(stand_in(engines, tells_window=name != "silent"))
        return f"{self._running[name].url}/v1"

    def close(self) -> None:
        """End all."""
        while self._running:
            self._running.popitem()[1].close()


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Servers, which end with the session."""
    found = Servers()
    yield found
    found.close()
