"""POST /v1/chat/completions, /v1/completions and /v1/responses."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from memograft.engine import Engine
from memograft.server.asking import Asked, ask_chat, ask_completion, check_model, longest
from memograft.server.errors import JsonResponse
from memograft.server.journal import facts_of
from memograft.server.owned import owned
from memograft.server.replies import ChatReply, CompletionReply
from memograft.server.response_reply import ResponseReply
from memograft.server.response_request import ResponseRequest
from memograft.server.rows import Admission, Pieces, answers_of
from memograft.server.schemas import ChatRequest, CompletionRequest
from memograft.server.settings import ServerSettings
from memograft.server.sse import EventStream, events
from memograft.server.tenants import Tenants
from memograft.storage.disk import JsonObject

__all__ = ["text_routes"]

_STREAM: dict[int | str, JsonObject] = {
    200: {"content": {"application/json": {}, "text/event-stream": {"schema": {"type": "string"}}}}
}


def text_routes(engine: Engine, settings: ServerSettings, tenants: Tenants, admission: Admission) -> APIRouter:
    """The routes for text of an engine."""
    routes = APIRouter()

    async def replied(reply: ChatReply | CompletionReply, asked: Asked, stream: bool, http: Request) -> Response:
        facts = facts_of(http.scope)
        ticket = admission.enter(facts.key, len(asked.requests))
        if not stream:
            try:
                answers = await answers_of(engine, asked.requests, http)
            finally:
                ticket.release()
            facts.answered(answers)
            return JsonResponse(await asyncio.to_thread(reply.whole, answers))  # citations take time
        pieces = Pieces(engine, asked.requests, http, ticket)
        try:
            await pieces.begun()  # an error before the first piece has a status of its own
        except BaseException:
            await pieces.aclose()
            raise
        named = isinstance(reply, ResponseReply)
        return EventStream(events(reply.chunks(pieces, facts), http, named=named), pieces.aclose)

    @routes.post("/v1/chat/completions", responses=_STREAM)
    async def chat_completions(body: ChatRequest, http: Request) -> Response:
        """Answer a conversation; with `stream`, as server-sent events."""
        check_model(body.model, [settings.model])
        asked = ask_chat(engine, settings, body, await owned(tenants.of(http), body))
        usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        return await replied(ChatReply(engine, asked, body.model, usage), asked, bool(body.stream), http)

    @routes.post("/v1/completions", responses=_STREAM)
    async def completions(body: CompletionRequest, http: Request) -> Response:
        """Answer prompts, each as a user message; with `stream`, as server-sent events."""
        check_model(body.model, [settings.model])
        asked = ask_completion(engine, settings, body, await owned(tenants.of(http), body))
        usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        return await replied(CompletionReply(engine, asked, body.model, usage), asked, bool(body.stream), http)

    @routes.post("/v1/responses", responses=_STREAM)
    async def responses(body: ResponseRequest, http: Request) -> Response:
        """Answer a conversation in the form of OpenAI's Responses; with `stream`, as server-sent events."""
        check_model(body.model, [settings.model])
        chat = body.chat(longest(engine, settings))
        asked = ask_chat(engine, settings, chat, await owned(tenants.of(http), chat))
        return await replied(ResponseReply(engine, asked, body.model, body=body), asked, bool(body.stream), http)

    return routes
