"""GET /v1/models and POST /v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
import time

import numpy as np
from fastapi import APIRouter
from starlette.responses import Response

from memograft.engine import Engine
from memograft.passages.embedders import Embedder
from memograft.server.asking import check_model
from memograft.server.errors import ApiError, JsonResponse, refused
from memograft.server.schemas import EmbeddingRequest
from memograft.server.settings import ServerSettings

__all__ = ["embedding_routes", "model_routes"]


def model_routes(engine: Engine, settings: ServerSettings, embedder: Embedder | None) -> APIRouter:
    """The routes that list models."""
    routes, begun = APIRouter(), int(time.time())

    def about(id: str, **more: object) -> dict[str, object]:
        return {"id": id, "object": "model", "created": begun, "owned_by": "memograft", **more}

    takes = {"takes_tools": engine.takes_tools, "takes_system": engine.takes_system}
    models = {settings.model: about(settings.model, max_model_len=engine.max_length, **takes)}
    if embedder is not None:
        models[settings.embedding_model] = about(settings.embedding_model, dimensions=embedder.dimension)

    @routes.get("/v1/models")
    async def list_models() -> Response:
        """The models of this server."""
        return JsonResponse({"object": "list", "data": list(models.values())})

    @routes.get("/v1/models/{model:path}")
    async def show_model(model: str) -> Response:
        """One model."""
        check_model(model, list(models))
        return JsonResponse(models[model])

    return routes


def embedding_routes(engine: Engine, settings: ServerSettings, embedder: Embedder | None) -> APIRouter:
    """The route for embeddings. It refuses all requests if the server has no embedder."""
    routes = APIRouter()

    def embed(found: Embedder, texts: list[str], body: EmbeddingRequest) -> tuple[list[object], int]:
        if body.input_type == "query":
            vectors = np.stack([found.embed_query(text) for text in texts])
        else:
            vectors = found.embed_documents(texts)
        rows = vectors.astype("<f4")
        encoded = body.encoding_format == "base64"
        values = [base64.b64encode(row.tobytes()).decode() if encoded else row.tolist() for row in rows]
        return values, sum(len(engine.encode(text)) for text in texts)

    @routes.post("/v1/embeddings")
    async def embeddings(body: EmbeddingRequest) -> Response:
        """Unit vectors of texts."""
        if embedder is None:
            raise ApiError(404, "this server has no embedder; start it with `--embedder`", code="model_not_found")
        check_model(body.model, [settings.embedding_model])
        texts = [body.input] if isinstance(body.input, str) else body.input
        if not 1 <= len(texts) <= settings.max_inputs:
            raise refused("input", f"`input` may have 1 to {settings.max_inputs} texts, got {len(texts)}; split them")
        if body.dimensions not in (None, embedder.dimension):
            raise refused(
                "dimensions", f"vectors have {embedder.dimension} dimensions, got {body.dimensions}; leave it out"
            )
        values, count = await asyncio.to_thread(embed, embedder, texts, body)
        data = [{"object": "embedding", "index": n, "embedding": value} for n, value in enumerate(values)]
        usage = {"prompt_tokens": count, "total_tokens": count}
        return JsonResponse({"object": "list", "data": data, "model": body.model, "usage": usage})

    return routes
