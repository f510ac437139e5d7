"""/v1/memories: documents that are memorized once, for later requests that name the memory by its id."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from fastapi import APIRouter, Request
from starlette.responses import Response

from memograft.documents import Document
from memograft.engine import Engine
from memograft.errors import MemoryFormatError, PromptTooLongError
from memograft.memory.base import Memory
from memograft.memory.fastmem.memory import FastMem
from memograft.server.errors import ApiError, JsonResponse, refused, too_long
from memograft.server.journal import facts_of
from memograft.server.rows import Admission
from memograft.server.schemas import MemoryRequest
from memograft.server.settings import ServerSettings
from memograft.server.shelf import Shelf, Shelved
from memograft.server.tenants import Tenants

__all__ = ["memory_routes"]

_log = logging.getLogger("memograft.server")


def memory_routes(engine: Engine, settings: ServerSettings, tenants: Tenants, admission: Admission) -> APIRouter:
    """The routes for memories."""
    routes = APIRouter()
    making: dict[tuple[Shelf, str], asyncio.Task[Shelved]] = {}

    async def make(shelf: Shelf, id: str, documents: Sequence[Document], memory: Memory, key: str) -> Shelved:
        ticket = admission.enter(key, 1)
        try:
            loop = asyncio.get_running_loop()
            handle = await loop.run_in_executor(tenants.workers, engine.memorize, documents, memory)
            return await asyncio.to_thread(shelf.put, id, handle)
        except MemoryFormatError as error:
            _log.error("a memory was not kept", extra={"facts": {"id": id, "reason": str(error)}})
            said = "the memory cannot be written; the reason was logged"
            raise ApiError(500, said, type="server_error", code="memory_not_kept") from error
        except PromptTooLongError as error:
            raise too_long("documents", error, str(error)) from error
        finally:
            ticket.release()

    @routes.post("/v1/memories", status_code=201, responses={200: {"description": "It was there already."}})
    async def create_memory(body: MemoryRequest, http: Request) -> Response:
        """Memorize documents and keep the memory. For the same documents and settings, it is the same memory."""
        shelf, memory = tenants.of(http).memories, body.memory_or(settings.memory or FastMem())
        documents = await _documents(shelf, body, settings)
        id = shelf.id_of(documents, memory)
        known = id in {each.id for each in shelf.all()}
        if not known:
            if (task := making.get((shelf, id))) is None:
                shelf.check_room()
                task = asyncio.create_task(make(shelf, id, documents, memory, facts_of(http.scope).key))
                making[shelf, id] = task
                task.add_done_callback(lambda done: _ended(making, (shelf, id), done))
            # It goes on if this client leaves or the time is over: the client can ask again.
            done, _ = await asyncio.wait([task], timeout=settings.timeout)
            if not done:
                said = f"memorizing takes longer than {settings.timeout:g} s and goes on; send the request again"
                raise ApiError(504, said, type="timeout_error", code="request_timeout")
            task.result()
        made = shelf.pin(id, pinned=True) if body.pinned else shelf.get(id)
        return JsonResponse(made.to_json(), 200 if known else 201)

    @routes.get("/v1/memories")
    async def list_memories(http: Request) -> Response:
        """Your memories, newest first."""
        found = [each.to_json() for each in tenants.of(http).memories.all()]
        return JsonResponse({"object": "list", "data": found})

    @routes.get("/v1/memories/{id}")
    async def show_memory(id: str, http: Request) -> Response:
        """One memory."""
        return JsonResponse(tenants.of(http).memories.get(id).to_json())

    @routes.post("/v1/memories/{id}/pin")
    async def pin_memory(id: str, http: Request) -> Response:
        """Keep a memory when there is no room for others."""
        return JsonResponse(tenants.of(http).memories.pin(id, pinned=True).to_json())

    @routes.post("/v1/memories/{id}/unpin")
    async def unpin_memory(id: str, http: Request) -> Response:
        """Allow that a memory is removed when there is no room for others."""
        return JsonResponse(tenants.of(http).memories.pin(id, pinned=False).to_json())

    @routes.delete("/v1/memories/{id}")
    async def delete_memory(id: str, http: Request) -> Response:
        """Delete a memory. Answers in progress that use it are not affected."""
        await asyncio.to_thread(tenants.of(http).memories.remove, id)
        return JsonResponse({"id": id, "object": "memory.deleted", "deleted": True})

    return routes


async def _documents(shelf: Shelf, body: MemoryRequest, settings: ServerSettings) -> tuple[Document, ...]:
    """The documents to memorize: those of the body, or of the memory that it names."""
    if (body.documents is None) == (body.id is None):
        raise refused("documents", "a memory is made of `documents`, or with the `id` of another one; pass one of them")
    if body.id is not None:
        return (await asyncio.to_thread(shelf.handle, body.id)).documents
    given = body.documents or []
    if not 1 <= len(given) <= settings.max_inputs:
        raise refused(
            "documents", f"`documents` may have 1 to {settings.max_inputs} documents, got {len(given)}; split them"
        )
    return tuple(page.document() for page in given)


def _ended(
    making: dict[tuple[Shelf, str], asyncio.Task[Shelved]], key: tuple[Shelf, str], task: asyncio.Task[Shelved]
) -> None:
    making.pop(key, None)
    if not task.cancelled():
        task.exception()  # read it, so that asyncio does not log it if every client has left
