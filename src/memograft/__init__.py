"""Memograft: a local language model memorizes the documents it is handed before it answers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memograft.datastore import Datastore
    from memograft.documents import Document
    from memograft.embedders import Embedder, LexicalEmbedder, SentenceTransformerEmbedder
    from memograft.engine import Engine
    from memograft.memory.handle import MemoryHandle
    from memograft.memory.report import MemoryReport
    from memograft.memory.settings import FastMem
    from memograft.processors.cad import Cad
    from memograft.processors.rtd import Rtd
    from memograft.request import (
        Answer,
        Citation,
        Reference,
        Request,
        Sampling,
        Source,
        SourceShare,
        Timings,
        TokenLogprob,
        TokenReferences,
        Usage,
    )
    from memograft.scoring import Choice
    from memograft.shared import shared_datastore, shared_engine
    from memograft.vector_store import Hit, VectorStore

__version__ = "0.1.0"

# Looked up on first use: `import memograft`, and whatever builds on it, loads no torch.
_HOMES = {
    "Answer": "memograft.request",
    "Cad": "memograft.processors.cad",
    "Choice": "memograft.scoring",
    "Citation": "memograft.request",
    "Datastore": "memograft.datastore",
    "Document": "memograft.documents",
    "Embedder": "memograft.embedders",
    "Engine": "memograft.engine",
    "FastMem": "memograft.memory.settings",
    "Hit": "memograft.vector_store",
    "LexicalEmbedder": "memograft.embedders",
    "MemoryHandle": "memograft.memory.handle",
    "MemoryReport": "memograft.memory.report",
    "Reference": "memograft.request",
    "Request": "memograft.request",
    "Rtd": "memograft.processors.rtd",
    "Sampling": "memograft.request",
    "SentenceTransformerEmbedder": "memograft.embedders",
    "Source": "memograft.request",
    "SourceShare": "memograft.request",
    "Timings": "memograft.request",
    "TokenLogprob": "memograft.request",
    "TokenReferences": "memograft.request",
    "Usage": "memograft.request",
    "VectorStore": "memograft.vector_store",
    "shared_datastore": "memograft.shared",
    "shared_engine": "memograft.shared",
}

__all__ = [
    "Answer",
    "Cad",
    "Choice",
    "Citation",
    "Datastore",
    "Document",
    "Embedder",
    "Engine",
    "FastMem",
    "Hit",
    "LexicalEmbedder",
    "MemoryHandle",
    "MemoryReport",
    "Reference",
    "Request",
    "Rtd",
    "Sampling",
    "SentenceTransformerEmbedder",
    "Source",
    "SourceShare",
    "Timings",
    "TokenLogprob",
    "TokenReferences",
    "Usage",
    "VectorStore",
    "shared_datastore",
    "shared_engine",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'memograft' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
