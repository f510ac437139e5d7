"""Memograft for LangChain: local models that memorize the documents of a request before they answer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_memograft.chains import create_memograft_documents_chain
    from langchain_memograft.chat_models import ChatMemograft
    from langchain_memograft.embeddings import MemograftEmbeddings
    from langchain_memograft.llms import MemograftLLM
    from langchain_memograft.middleware import MemograftMiddleware
    from langchain_memograft.retrievers import MemograftRetriever
    from langchain_memograft.vectorstores import MemograftVectorStore

__version__ = "0.2.0"

# Modules are imported at the first use of their names. So importing the package is fast, and only the middleware needs
# langchain.
_HOMES = {
    "ChatMemograft": "chat_models",
    "MemograftEmbeddings": "embeddings",
    "MemograftLLM": "llms",
    "MemograftMiddleware": "middleware",
    "MemograftRetriever": "retrievers",
    "MemograftVectorStore": "vectorstores",
    "create_memograft_documents_chain": "chains",
}

__all__ = [
    "ChatMemograft",
    "MemograftEmbeddings",
    "MemograftLLM",
    "MemograftMiddleware",
    "MemograftRetriever",
    "MemograftVectorStore",
    "__version__",
    "create_memograft_documents_chain",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'langchain_memograft' has no attribute {name!r}")
    return getattr(import_module(f"langchain_memograft.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
