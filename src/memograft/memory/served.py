"""`ServedMemory`: a memory that a server has, as a request names it. It has no weights, and importing it no torch."""

from __future__ import annotations

from dataclasses import dataclass

from memograft.memory.report import MemoryReport

__all__ = ["AS_SERVED", "ServedMemory"]


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
