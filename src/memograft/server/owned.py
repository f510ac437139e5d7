"""What a request for text uses of its tenant: a memory by its id, documents retrieved from a store, the bank."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from memograft.attribution import Words, sentences
from memograft.chat import json_like, text_of
from memograft.documents import Document
from memograft.memory.bank import Bank
from memograft.memory.handle import MemoryHandle
from memograft.passages.search import Hit
from memograft.server.errors import refused
from memograft.server.schemas import ChatRequest, SampledRequest, StoreChoice
from memograft.server.tenants import Tenant

__all__ = ["Owned", "cited", "owned"]

_WORDS = 3  # that an answer's sentence and a document must have in sequence; or all words of a shorter sentence


@dataclass(frozen=True)
class Owned:
    """What a request uses of its tenant.

    Attributes:
        bank: for what it memorizes; None: the engine's. A request with a memory by its id puts nothing into a bank, so
            that deleting the memory deletes all of it.
        memory: by its id.
        id: of `memory`.
        store: from which documents were retrieved.
        hits: these documents, best first.
    """

    bank: Bank | None = None
    memory: MemoryHandle | None = None
    id: str | None = None
    store: str | None = None
    hits: tuple[Hit, ...] = ()

    @property
    def documents(self) -> list[Document]:
        """The retrieved documents."""
        return [hit.document for hit in self.hits]

    def report(self, named: Container[object]) -> dict[str, object]:
        """What the response says about it: values of the field `memograft`. `named` has ids of cited documents."""
        told: dict[str, object] = {} if self.id is None else {"memory_id": self.id}
        if self.store is None:
            return told
        retrieved = [
            {
                "id": hit.document.id,
                "text": hit.document.text,
                "metadata": json_like(hit.document.metadata),
                "score": hit.score,
                "cited": hit.document.id in named,
            }
            for hit in self.hits
        ]
        return {**told, "store": self.store, "retrieved": retrieved}


async def owned(tenant: Tenant, body: SampledRequest) -> Owned:
    """Look up what a body names.

    Raises:
        ApiError, MemograftError: there is no such memory or store, or its filter is malformed.
    """
    memory, bank = None, tenant.bank
    if body.memory_id is not None:
        memory, bank = await asyncio.to_thread(tenant.memories.handle, body.memory_id), None
    if not isinstance(body, ChatRequest) or not isinstance(body.store, StoreChoice):
        return Owned(bank, memory, body.memory_id)
    question = body.query or _question(body)
    hits = await asyncio.to_thread(tenant.stores.search, body.store.name, question, body.store)
    return Owned(bank, memory, body.memory_id, body.store.name, tuple(hits))


def cited(text: str, documents: Sequence[Document]) -> list[dict[str, object]]:
    """For each sentence of a text the longest sequence of words that a document has too, and that document.

    Of several documents with equally long sequences, the first is named. Each citation has `start`, `end` and `text` of
    the sequence, the `document`'s id, and `document_start` and `document_end`, where the sequence stands in it.
    """
    found: list[dict[str, object]] = []
    known = [(document, own) for document in documents for own in sentences(document.text)]
    having: dict[
        int, dict[tuple[str, ...], list[int]]
    ] = {}  # number of words -> such sequences -> sentences of `known`
    for sentence in sentences(text):
        least = min(_WORDS, len(sentence.words))
        if least not in having:
            having[least] = _having(known, least)
        size, first, source, there = 0, 0, None, (0, 0)
        for n in sorted({n for words in _sequences(sentence, least) for n in having[least].get(words, ())}):
            document, other = known[n]
            match = SequenceMatcher(None, sentence.words, other.words, autojunk=False).find_longest_match()
            if match.size > size:
                size, first, source = match.size, match.a, document
                there = other.places[match.b][0], other.places[match.b + match.size - 1][1]
        if source is None:
            continue
        start, end = sentence.places[first][0], sentence.places[first + size - 1][1]
        place = {"start": start, "end": end, "document_start": there[0], "document_end": there[1]}
        found.append({"text": text[start:end], "document": source.id, **place})
    return found


def _having(known: Sequence[tuple[Document, Words]], count: int) -> dict[tuple[str, ...], list[int]]:
    """Which sentences have a sequence of `count` words. Comparing all of them with an answer would take too long."""
    having: dict[tuple[str, ...], list[int]] = {}
    for n, (_, sentence) in enumerate(known):
        for words in set(_sequences(sentence, count)):
            having.setdefault(words, []).append(n)
    return having


def _sequences(sentence: Words, count: int) -> list[tuple[str, ...]]:
    return [sentence.words[n : n + count] for n in range(len(sentence.words) - count + 1)]


def _question(body: ChatRequest) -> str:
    """The text of the last user message."""
    asked = next((message for message in reversed(body.messages) if message.role == "user"), None)
    text = "" if asked is None else text_of(asked.content, "the last user message")[0]
    if not text.strip():
        raise refused("store", "`store` needs a user message with text to retrieve for, got none; or pass `query`")
    return text
