"""`ServerSettings`: what a server is called, and what it allows its clients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from memograft.decoding.sampling import is_number, is_whole
from memograft.errors import SettingsError
from memograft.memory.base import Memory
from memograft.memory.fastmem.memory import FastMem

__all__ = ["ServerSettings"]

# Fields that must be whole numbers, with their least values.
_WHOLE: Mapping[str, int] = {
    "max_tokens": 1,
    "default_max_tokens": 1,
    "max_body": 1024,
    "max_queue": 0,
    "max_per_key": 1,
    "max_inputs": 1,
    "max_upload": 1024,
    "max_memories": 1,
    "memory_bytes": 1,
    "cache_bytes": 1,
    "max_stores": 0,
    "store_bytes": 1,
    "max_passages": 1,
}
_SECONDS = ("timeout", "read_timeout", "shutdown_timeout")


@dataclass(frozen=True)
class ServerSettings:
    """What a server is called, and what it allows its clients.

    Attributes:
        model: the id under which clients ask for the model.
        embedding_model: the id of the embedder.
        memory: for requests with documents that do not say how to memorize them; None answers from the prompt.
        temperature: for requests without one; 0 is greedy.
        default_max_tokens: length of an answer for requests that do not limit it; the model's window may end it
            earlier.
        max_tokens: largest limit that a request may ask for; None allows what fits the model's window.
        max_body: bytes of a request's body.
        max_queue: answers that may wait while the engine is busy. Requests beyond it get status 429.
        max_per_key: answers that one key may have in progress; None: as many as all keys together.
        max_inputs: texts in one request for embeddings, and prompts in one for completions.
        max_upload: bytes of a request that adds documents to a store.
        max_memories: memories that a tenant may have.
        memory_bytes: their size together, in process memory or on disk.
        cache_bytes: what a tenant's bank keeps in process memory for later requests with the same documents: their
            memories, and as much again of their keys and values.
        max_stores: stores that a tenant may have; 0: only those of the operator.
        store_bytes: their size together.
        max_passages: passages of a store.
        timeout: seconds for an answer, including the time in the queue.
        read_timeout: seconds in which a client must have sent a request's headers, and then its body.
        shutdown_timeout: seconds for which answers may go on after the server was told to end.

    Raises:
        SettingsError: a value is out of its range.
    """

    model: str = "memograft"
    embedding_model: str = "embedder"
    memory: Memory | None = field(default_factory=FastMem)
    temperature: float = 0.0
    default_max_tokens: int = 1024
    max_tokens: int | None = None
    max_body: int = 4 << 20
    max_queue: int = 64
    max_per_key: int | None = None
    max_inputs: int = 256
    max_upload: int = 32 << 20
    max_memories: int = 256
    memory_bytes: int = 1 << 30
    cache_bytes: int = 256 << 20
    max_stores: int = 32
    store_bytes: int = 1 << 30
    max_passages: int = 100_000
    timeout: float = 300.0
    read_timeout: float = 20.0
    shutdown_timeout: float = 60.0

    def __post_init__(self) -> None:
        for name in ("model", "embedding_model"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise SettingsError(f"`{name}` must be a name, got {getattr(self, name)!r}; clients ask for it")
        for name, least in _WHOLE.items():
            value = getattr(self, name)
            if value is None and name in ("max_tokens", "max_per_key"):
                continue
            if not is_whole(value) or value < least:
                raise SettingsError(f"`{name}` must be a whole number of at least {least}, got {value!r}")
        for name in _SECONDS:
            value = getattr(self, name)
            if not (is_number(value) and 0 < value < math.inf):
                raise SettingsError(f"`{name}` must be a positive number of seconds, got {value!r}")
        if not (is_number(self.temperature) and 0 <= self.temperature <= 2):
            raise SettingsError(f"`temperature` must be 0 (greedy) to 2, got {self.temperature!r}")
