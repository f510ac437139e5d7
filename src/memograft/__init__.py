"""Memograft: a local language model memorizes retrieved documents before it answers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memograft.client import RemoteEngine
    from memograft.decoding.cad import Cad
    from memograft.decoding.dola import Dola
    from memograft.documents import Document
    from memograft.engine import Engine
    from memograft.memory.bank import Bank
    from memograft.memory.base import Memory
    from memograft.memory.compact.memory import Compacted, Kept
    from memograft.memory.fastmem.memory import FastMem
    from memograft.memory.gist.memory import Gist
    from memograft.memory.handle import MemoryHandle
    from memograft.memory.mac.bank import MacBank
    from memograft.memory.mac.memory import Mac
    from memograft.memory.report import MemoryReport
    from memograft.memory.served import ServedMemory
    from memograft.passages.embedders import Embedder, LexicalEmbedder, SentenceTransformerEmbedder
    from memograft.passages.index import IndexSettings
    from memograft.passages.vector_store import Hit, VectorStore
    from memograft.request import (
        Answer,
        Citation,
        Conflict,
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
    from memograft.rtd.datastore import Datastore
    from memograft.rtd.formula import Rtd
    from memograft.rtd.shared import shared_datastore
    from memograft.serving.scoring import Choice
    from memograft.shared import shared_engine

__version__ = "0.2.0"

# Imported on first use, so that `import memograft` does not import torch.
_HOMES = {
    "Answer": "memograft.request",
    "Bank": "memograft.memory.bank",
    "Cad": "memograft.decoding.cad",
    "Choice": "memograft.serving.scoring",
    "Citation": "memograft.request",
    "Compacted": "memograft.memory.compact.memory",
    "Conflict": "memograft.request",
    "Datastore": "memograft.rtd.datastore",
    "Document": "memograft.documents",
    "Dola": "memograft.decoding.dola",
    "Embedder": "memograft.passages.embedders",
    "Engine": "memograft.engine",
    "FastMem": "memograft.memory.fastmem.memory",
    "Gist": "memograft.memory.gist.memory",
    "Hit": "memograft.passages.vector_store",
    "IndexSettings": "memograft.passages.index",
    "Kept": "memograft.memory.compact.memory",
    "LexicalEmbedder": "memograft.passages.embedders",
    "Mac": "memograft.memory.mac.memory",
    "MacBank": "memograft.memory.mac.bank",
    "Memory": "memograft.memory.base",
    "MemoryHandle": "memograft.memory.handle",
    "MemoryReport": "memograft.memory.report",
    "Reference": "memograft.request",
    "RemoteEngine": "memograft.client",
    "Request": "memograft.request",
    "Rtd": "memograft.rtd.formula",
    "Sampling": "memograft.request",
    "SentenceTransformerEmbedder": "memograft.passages.embedders",
    "ServedMemory": "memograft.memory.served",
    "Source": "memograft.request",
    "SourceShare": "memograft.request",
    "Timings": "memograft.request",
    "TokenLogprob": "memograft.request",
    "TokenReferences": "memograft.request",
    "Usage": "memograft.request",
    "VectorStore": "memograft.passages.vector_store",
    "shared_datastore": "memograft.rtd.shared",
    "shared_engine": "memograft.shared",
}

__all__ = [
    "Answer",
    "Bank",
    "Cad",
    "Choice",
    "Citation",
    "Compacted",
    "Conflict",
    "Datastore",
    "Document",
    "Dola",
    "Embedder",
    "Engine",
    "FastMem",
    "Gist",
    "Hit",
    "IndexSettings",
    "Kept",
    "LexicalEmbedder",
    "Mac",
    "MacBank",
    "Memory",
    "MemoryHandle",
    "MemoryReport",
    "Reference",
    "RemoteEngine",
    "Request",
    "Rtd",
    "Sampling",
    "SentenceTransformerEmbedder",
    "ServedMemory",
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


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'memograft' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
