"""/v1/stores: vector stores, into which clients put documents, and which they search."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from memograft.chat import json_like
from memograft.documents import Document
from memograft.server.errors import ApiError, JsonResponse
from memograft.server.rooms import StoreRoom
from memograft.server.schemas import SearchRequest, StoreRequest
from memograft.server.settings import ServerSettings
from memograft.server.tenants import Tenants
from memograft.server.uploads import BODY, incoming

__all__ = ["store_routes"]

Json = dict[str, object]


def store_routes(settings: ServerSettings, tenants: Tenants) -> APIRouter:
    """The routes for stores."""
    routes = APIRouter()

    @routes.post("/v1/stores", status_code=201)
    async def create_store(body: StoreRequest, http: Request) -> Response:
        """Make an empty store."""
        return JsonResponse(await asyncio.to_thread(tenants.of(http).stores.create, body.name), 201)

    @routes.get("/v1/stores")
    async def list_stores(http: Request) -> Response:
        """Your stores, and those of the operator."""
        room = tenants.of(http).stores
        found = await asyncio.to_thread(lambda: [room.about(name) for name in room.names()])
        return JsonResponse({"object": "list", "data": found})

    @routes.get("/v1/stores/{name}")
    async def show_store(name: str, http: Request) -> Response:
        """One store."""
        return JsonResponse(await asyncio.to_thread(tenants.of(http).stores.about, name))

    @routes.delete("/v1/stores/{name}")
    async def delete_store(name: str, http: Request) -> Response:
        """Delete a store with its documents."""
        await asyncio.to_thread(tenants.of(http).stores.delete, name)
        return JsonResponse({"name": name, "object": "store.deleted", "deleted": True})

    @routes.post("/v1/stores/{name}/documents", status_code=201, openapi_extra=BODY)
    async def add_documents(name: str, http: Request) -> Response:
        """Add documents, or files (txt, md, pdf, html, docx) that are split into passages.

        Documents with the same ids are replaced, and so are all passages of files with the same names.
        """
        room = tenants.of(http).stores
        await asyncio.to_thread(room.get, name)
        added = await incoming(http, settings)
        ids = await asyncio.to_thread(room.add, name, added.documents, added.stale)
        return JsonResponse({"object": "list", "ids": ids, "store": await asyncio.to_thread(room.about, name)}, 201)

    @routes.get("/v1/stores/{name}/documents")
    async def list_documents(
        name: str,
        http: Request,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
    ) -> Response:
        """The documents of a store, oldest first, a page at a time."""
        return JsonResponse(await asyncio.to_thread(_page, tenants.of(http).stores, name, limit, offset))

    @routes.delete("/v1/stores/{name}/documents/{id:path}")
    async def delete_document(name: str, id: str, http: Request) -> Response:
        """Delete a document."""
        await asyncio.to_thread(_delete, tenants.of(http).stores, name, id)
        return JsonResponse({"id": id, "object": "document.deleted", "deleted": True})

    @routes.post("/v1/stores/{name}/search")
    async def search_store(name: str, body: SearchRequest, http: Request) -> Response:
        """The documents that are closest to a question, best first."""
        found = await asyncio.to_thread(tenants.of(http).stores.search, name, body.query, body)
        return JsonResponse({"object": "list", "data": [{**_json(hit.document), "score": hit.score} for hit in found]})

    return routes


def _page(room: StoreRoom, name: str, limit: int, offset: int) -> Json:
    with room.using(name) as store:
        total = len(store)
        found = list(islice(store.find(), offset, offset + limit)) if offset < total else []
    page = {
        "object": "list",
        "data": [_json(room.shown(name, document)) for document in found],
        "total": total,
        "offset": offset,
    }
    return {**page, "has_more": offset + len(found) < total}


def _delete(room: StoreRoom, name: str, id: str) -> None:
    with room.using(name) as store:
        if not store.delete([id]):
            said = f"the store {name!r} has no document {id!r:.80}; GET its documents for their ids"
            raise ApiError(404, said, param="id", code="document_not_found")


def _json(document: Document) -> Json:
    return {"id": document.id, "text": document.text, "metadata": json_like(document.metadata)}
