"""`create_app`: the application of an engine, with its routes, its errors and what surrounds them."""

from __future__ import annotations

from collections.abc import Collection

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from memograft import __version__
from memograft.engine import Engine
from memograft.errors import MemograftError, SettingsError
from memograft.passages.embedders import Embedder
from memograft.server.errors import ApiError, JsonResponse, api_error, of_validation
from memograft.server.guard import LOOPBACK, Guard
from memograft.server.journal import Journal, Metrics, facts_of
from memograft.server.keys import Keys
from memograft.server.listing import embedding_routes, model_routes
from memograft.server.memories import memory_routes
from memograft.server.response_request import ResponseRequest
from memograft.server.rows import Admission, ClientGone
from memograft.server.schemas import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    MemoryRequest,
    PassagesRequest,
    SearchRequest,
    StoreRequest,
)
from memograft.server.settings import ServerSettings
from memograft.server.stores import store_routes
from memograft.server.tenants import Tenants
from memograft.server.text import text_routes
from memograft.server.web_page import page_routes

__all__ = ["create_app"]

_BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponseRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/v1/memories": MemoryRequest,
    "/v1/stores": StoreRequest,
    "/v1/stores/{name}/documents": PassagesRequest,
    "/v1/stores/{name}/search": SearchRequest,
}


class ErrorFields(BaseModel):
    """What is wrong with a request."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every response with an error."""

    error: ErrorFields


_ERRORS = (400, 401, 403, 404, 408, 409, 413, 421, 429, 500, 503, 504)


def create_app(
    engine: Engine,
    settings: ServerSettings | None = None,
    *,
    keys: Keys | None = None,
    embedder: Embedder | None = None,
    hosts: Collection[str] | None = LOOPBACK,
    tenants: Tenants | None = None,
) -> FastAPI:
    """The application that serves an engine with OpenAI's protocol. The engine stays the caller's; run it with `serve`.

    Args:
        engine: answers the requests. Others may use it too.
        settings: names and limits.
        keys: whoever has one may use the server; None asks for no key.
        embedder: for /v1/embeddings; None refuses these requests.
        hosts: names by which clients may address a server without keys; None: any. Ignored with keys.
        tenants: have the memories and stores of the keys' holders; None keeps them in process memory.

    Raises:
        SettingsError: there are keys, and the engine has a bank, which would tell a tenant what others asked.
    """
    settings = settings or ServerSettings()
    if keys is not None and engine.bank is not None:
        raise SettingsError(
            f"with keys each tenant has a bank of its own, but the engine has {engine.bank!r} for all; make the engine "
            "without one, and pass tenants=Tenants(engine, settings, bank=FOLDER)"
        )
    tenants = tenants or Tenants(engine, settings, embedder=embedder)
    admission = Admission(engine, settings)
    app = FastAPI(
        title="Memograft",
        version=__version__,
        docs_url=None,  # its page loads scripts from a CDN
        redoc_url=None,
        responses={status: {"model": ErrorBody} for status in _ERRORS},
        telemetry={"logs": False, "metrics": False},  # its log records have the texts of invalid requests
    )
    app.state.settings = settings
    metrics = Metrics(engine)
    # Guard reads the key itself, before a body is read. This only describes it in the OpenAPI document.
    described = [Depends(HTTPBearer(auto_error=False))] if keys is not None else []
    for routes in (
        text_routes(engine, settings, tenants, admission),
        memory_routes(engine, settings, tenants, admission),
        store_routes(settings, tenants),
        embedding_routes(engine, settings, embedder),
        model_routes(engine, settings, embedder),
        _own_routes(metrics),
    ):
        app.include_router(routes, dependencies=described)
    app.include_router(_probes(engine))
    app.include_router(page_routes(keys=keys is not None))
    _handle_errors(app)
    app.add_middleware(Guard, settings=settings, keys=keys, hosts=None if keys is not None else hosts)
    app.add_middleware(Journal, metrics=metrics)
    return app


def _probes(engine: Engine) -> APIRouter:
    routes = APIRouter()

    @routes.get("/health")
    async def health() -> Response:
        """Whether the process answers."""
        return JsonResponse({"status": "ok"})

    @routes.get("/ready")
    async def ready() -> Response:
        """Whether the engine takes requests."""
        return JsonResponse({"status": "closed" if engine.closed else "ready"}, 503 if engine.closed else 200)

    return routes


def _own_routes(metrics: Metrics) -> APIRouter:
    routes = APIRouter()

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def show_metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    return routes


def _handle_errors(app: FastAPI) -> None:
    """Give every error OpenAI's form."""

    def response(http: Request, error: ApiError) -> Response:
        facts_of(http.scope).error = error.code or error.type
        return error.response()

    async def deliberate(http: Request, error: Exception) -> Response:
        return response(http, api_error(error))

    async def invalid(http: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        model = _BODIES.get(getattr(http.scope.get("route"), "path", ""))
        fields = {} if model is None else model.model_fields
        about = {name: field.description or "" for name, field in fields.items()}
        return response(http, of_validation(error.errors(), about))

    async def other(http: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        known = {
            400: "the body cannot be read as JSON in UTF-8",
            404: "there is no such route",
            405: "the route does not take this method",
        }
        said = known.get(error.status_code, error.detail)
        said = f"{said}, got {http.method} {http.url.path!r:.200}; see /openapi.json"
        headers = dict(error.headers or {})
        return response(http, ApiError(error.status_code, said, headers=headers))

    async def gone(http: Request, _error: Exception) -> Response:
        facts_of(http.scope).error = "client_gone"
        return Response(status_code=499)  # for the log; nobody receives it

    for kind in (ApiError, MemograftError):
        app.add_exception_handler(kind, deliberate)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, other)
    app.add_exception_handler(ClientGone, gone)
