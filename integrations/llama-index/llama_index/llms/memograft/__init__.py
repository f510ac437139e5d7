"""Memograft for LlamaIndex: local models that memorize the documents of a request before they answer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_index.llms.memograft.base import Memograft
    from llama_index.llms.memograft.embedding import MemograftEmbedding
    from llama_index.llms.memograft.synthesizer import MemograftSynthesizer
    from llama_index.llms.memograft.vector_store import MemograftVectorStore

__version__ = "0.2.0"

# Modules are imported at the first use of their names, so that the LLM does not import the vector store, or vice versa.
_HOMES = {
    "Memograft": "base",
    "MemograftEmbedding": "embedding",
    "MemograftSynthesizer": "synthesizer",
    "MemograftVectorStore": "vector_store",
}

__all__ = ["Memograft", "MemograftEmbedding", "MemograftSynthesizer", "MemograftVectorStore", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'llama_index.llms.memograft' has no attribute {name!r}")
    return getattr(import_module(f"llama_index.llms.memograft.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
