"""`ServedMemory`: a memory that a server has, as a request names it. It has no weights, and importing it no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from memograft.errors import SettingsError
from memograft.memory.report import MemoryReport

if TYPE_CHECKING:
    from memograft.memory.base import Memory

__all__ = ["AS_SERVED", "ServedMemory", "served_memory"]

_KINDS = ("fastmem", "kept", "compacted")  # those of which a server takes the settings


@dataclass(frozen=True)
class ServedMemory:
    """A memory of a server, for requests of a `RemoteEngine`.

    Attributes:
        id: its id, of POST /v1/memories. Of a server that is not Memograft's: the name of an adapter.
        documents: ids of its documents, if known.
        report: what memorizing did, if known.
    """

    id: str
    documents: tuple[str, ...] = ()
    report: MemoryReport | None = None


# What the server does with documents if a request does not say anything about it: `memograft serve` memorizes them, and
# other servers answer with the model or adapter that was named.
AS_SERVED = ServedMemory("")


def served_memory(value: object) -> Memory | ServedMemory | None:
    """The argument `memory` of a framework's object for a `RemoteEngine`; a string is the id of a memory.

    Raises:
        SettingsError: it is a memory of this process, or of a folder of this machine.
    """
    if value is None or isinstance(value, ServedMemory):
        return value
    if isinstance(value, str) and value:
        return ServedMemory(value)
    kind, kept = getattr(value, "kind", None), getattr(value, "kept", None)
    if kind in _KINDS and kept is None:
        return value  # type: ignore[return-value]
    what = "a memory of this process" if kept is not None else repr(value)[:80]
    raise SettingsError(
        "`memory` with `base_url` must be what memorizing on the server returned, the id of a memory or the name of an "
        f"adapter that the server has, FastMem(...), Kept(...), Compacted(...) or None, got {what}; memorize the "
        "documents on the server"
    )
