"""`Ours`: how `memograft serve` is asked. The engine there gets requests as the one of this process would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields

from memograft.chat import json_like
from memograft.client.protocol import Protocol, documents_of
from memograft.client.wire import ServedAnswer, answer_from_json
from memograft.decoding.cad import Cad
from memograft.decoding.dola import Dola
from memograft.documents import Document
from memograft.errors import SettingsError
from memograft.memory.base import Memory
from memograft.memory.served import AS_SERVED, ServedMemory
from memograft.request import Request
from memograft.storage.disk import JsonObject

__all__ = ["Ours", "memory_to_json", "pages_of"]


class Ours(Protocol):
    """A server of Memograft."""

    def body(self, request: Request) -> JsonObject:
        """The body for a request, with its documents and memory."""
        body = {**super().body(request), "raw": True, "overflow": request.overflow}
        if request.json_optional:
            body["json_optional"] = True
        if request.query is not None:
            body["query"] = request.query
        if documents := documents_of(request):
            body["documents"] = pages_of(documents)
        if isinstance(request.memory, ServedMemory):
            return body if request.memory == AS_SERVED else {**body, "memory": request.memory.id}
        return {**body, "memory": None if request.memory is None else memory_to_json(request.memory)}

    def contrasts(self, processors: Sequence[object]) -> JsonObject:
        """The fields for Cad and Dola; all other processors are refused."""
        found: JsonObject = {}
        for each in processors:
            if not isinstance(each, Cad | Dola):
                return super().contrasts([each])
            if isinstance(each, Cad) and each.agreed is not None:
                raise SettingsError(
                    f"`processors` of a request to a server may hold Cad without `agreed`, got {each!r}; use "
                    "FastMem(cad=...)"
                )
            name = "cad" if isinstance(each, Cad) else "dola"
            if name in found:
                raise SettingsError(
                    f"`processors` may hold one {type(each).__name__}, got {each!r} too; keep one of them"
                )
            found[name] = each.alpha if isinstance(each, Cad) else each.layers
        return found

    def answer(self, completion: JsonObject, request: Request, seconds: float) -> ServedAnswer:  # noqa: ARG002
        """The engine's answer, which is beside the choices."""
        return answer_from_json(completion["memograft"]["answer"])


def pages_of(documents: list[Document]) -> list[JsonObject]:
    """Documents as the server's routes take them."""
    return [{"text": each.text, "id": each.id, "metadata": json_like(each.metadata)} for each in documents]


def memory_to_json(memory: object) -> JsonObject:
    """The settings of a memory that are not the defaults, with its kind, for the server's field `memory`.

    Raises:
        SettingsError: it is not the settings of a memory.
    """
    if not isinstance(memory, Memory):
        raise SettingsError(
            f"`memory` of a request to a server must be FastMem(...), Kept(...) or Compacted(...), the id of a memory "
            f"that the server has, or None, got {type(memory).__name__}, which belongs to an engine of one process; "
            "memorize the documents on the server, and pass what that returns"
        )
    defaults = {
        each.name: each.default_factory() if each.default_factory is not MISSING else each.default
        for each in fields(memory)  # type: ignore[arg-type]
    }
    changed: JsonObject = {"kind": memory.kind}
    for name, value in memory.to_json().items():
        given = getattr(memory, name, None)
        if name != "kind" and given != defaults[name]:
            changed[name] = memory_to_json(given) if isinstance(given, Memory) else value
    return changed
