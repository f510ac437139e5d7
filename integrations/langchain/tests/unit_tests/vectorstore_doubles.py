"""Test data for the vector store: a few pages, and embeddings whose searches have known results."""

from __future__ import annotations

import asyncio

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

PAGES = [
    Document("The capital of France is Paris.", id="paris", metadata={"lang": "en", "year": 2001}),
    Document("The capital of France is Paris!", id="copy", metadata={"lang": "en", "year": 2002}),
    Document("France exports wine and cheese.", id="wine", metadata={"lang": "en", "year": 2003}),
    Document("La capitale de la France est Paris.", id="fr", metadata={"lang": "fr", "tags": ["a", "b"], "x": None}),
]
QUESTION = "What is the capital of France?"


class Numbers(Embeddings):
    """Embeds "7 ..." as the 7th row of a fixed random matrix, and records the calls."""

    def __init__(self, dimension: int = 16) -> None:
        self.table = np.random.default_rng(0).normal(size=(12_000, dimension))
        self.calls: list[str] = []

    def _rows(self, texts: list[str]) -> list[list[float]]:
        return [
            self.table[int(text.split()[0])].tolist() if text[0].isdigit() else self.table[0].tolist() for text in texts
        ]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.calls.append("documents")
        return self._rows(texts)

    def embed_query(self, text: str) -> list[float]:
        self.calls.append("query")
        return self._rows([text])[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        self.calls.append("adocuments")
        await asyncio.sleep(0)
        return self._rows(texts)

    async def aembed_query(self, text: str) -> list[float]:
        self.calls.append("aquery")
        await asyncio.sleep(0)
        return self._rows([text])[0]
