"""Questions about invented things or of SQuAD, and the banks and stores that have their pages."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes" / "tiny"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes" / "gist"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes" / "mac"))

from language import RELATIONS
from sets import Item as Made
from sets import items as made
from squad_samples import sentences
from squad_seq import ASK

from memograft import Document, Engine, LexicalEmbedder, MacBank, Memory, Request, Sampling, VectorStore
from memograft.documents import as_documents
from memograft.evaluation.items import Item, world
from memograft.evaluation.scores import exact_match, f1, holds
from memograft.memory.mac.entries import Name
from memograft.passages.search import SearchMode

__all__ = ["Drawn", "Rows", "filled", "pages", "squad"]

Rows = list[dict[str, Any]]

SAMPLING = Sampling(max_new_tokens=32)


def pages(split: str, count: int) -> tuple[list[Item], list[Item]]:
    """The bundled questions, and further ones out of `count`. The last of an item's `answers` is the whole sentence.

    The names are invented from few syllables, so some things of two items have the same name. A question is left out if
    its subject is on a page of an earlier one, or an earlier one's subject on its pages.
    """
    bundled = {item.id: item for item in world(split) if item.set == "unseen"}
    found: tuple[list[Item], list[Item]] = ([], [])
    subjects, texts = list[str](), ""
    for item in [*made("unseen", len(bundled), split), *made("unseen", count, f"{split}-mac")]:
        subject, text = _subject(item).casefold(), "\n".join(item.documents).casefold()
        if subject in texts or any(other in text for other in subjects):
            continue
        subjects.append(subject)
        texts += text + "\n"
        documents = as_documents(item.documents)
        own = bundled.get(item.id, Item(item.id, item.set, item.question, documents, (item.right,)))
        found[item.id not in bundled].append(replace(own, answers=(*own.answers, item.answer)))
    return found


def squad(file: Path) -> tuple[list[Item], list[Item]]:
    """One question of each page of a file of `recipes/mac/squad_seq.py`, drawn with seed 0; no further ones."""
    questions: dict[str, list[dict[str, Any]]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        questions.setdefault(sample["documents"][0], []).append(sample)
    rng, items = random.Random(0), []
    for n, (text, samples) in enumerate(questions.items()):
        chosen = rng.choice(samples)
        items.append(Item(f"page-{n}", "squad", chosen["question"], as_documents([text]), (chosen["answer"],)))
    return items, []


def _subject(item: Made) -> str:
    start, end = RELATIONS[item.relation].answer.replace("{v}", item.right).split("{s}")
    return item.answer[len(start) : len(item.answer) - len(end)]


class Drawn:
    """The questions that a seed draws, with their documents; banks and stores are made when they are first used.

    Args:
        items: bundled ones, which are drawn first, and further ones.
        most: documents; the last question's second one may be one more.
        questions: that are asked, at most.
        folder: for banks and stores.
        apart: a bank has a modulation for each sentence of the documents.
    """

    def __init__(
        self,
        engine: Engine,
        mac: Path,
        items: tuple[Sequence[Item], Sequence[Item]],
        seed: int,
        most: int,
        questions: int,
        folder: Path,
        apart: bool = False,
    ) -> None:
        self.engine, self.mac, self.seed, self.folder, self.apart = engine, mac, seed, folder, apart
        bundled, further = items
        drawn, end, count = [*random.Random(seed).sample(bundled, len(bundled)), *further], 0, 0
        while count < most and end < len(drawn):
            count += len(drawn[end].documents)
            end += 1
        self.items, self.documents = drawn[:end][:questions], _documents_of(drawn[:end])
        self.others = _documents_of(drawn[end:])  # of questions that are not asked
        folder.mkdir(parents=True)

    def ask(
        self,
        memory: Memory | None = None,
        find: Callable[[Item], Sequence[Document]] = lambda _: (),
        engine: Engine | None = None,
    ) -> Rows:
        """A row for each question, answered with a memory and the documents that are found for it."""
        shown = [find(item) for item in self.items]
        requests = [
            Request(item.question, documents=documents, memory=memory, sampling=SAMPLING)
            for item, documents in zip(self.items, shown, strict=True)
        ]
        rows = []
        for item, documents, answer in zip(
            self.items, shown, (engine or self.engine).answer_batch(requests), strict=True
        ):
            row = {"id": item.id, "text": answer.text, "right": holds(answer.text, item.answers[0])}
            row |= {"em": exact_match(answer.text, item.answers), "f1": f1(answer.text, item.answers)}
            row |= {"unfinished": answer.finish_reason != "stop"}
            value = item.answers[0].casefold()  # SQuAD-Seq's begin with a capital
            own = {document.id for document in item.documents if value in document.text.casefold()}
            rows.append(row | {"found": any(document.id in own for document in documents)})
        return rows

    def searched(self, mode: SearchMode, k: int) -> Callable[[Item], Sequence[Document]]:
        """Finds the first k documents."""
        store = self.text if mode == "text" else self.vectors
        return lambda item: [hit.document for hit in store.search(item.question.removeprefix(ASK), k, mode=mode)]

    @cached_property
    def text(self) -> VectorStore:
        """A store that searches by BM25."""
        return filled(None, self.folder / "text", self.documents)

    @cached_property
    def vectors(self) -> VectorStore:
        """A store that searches by vectors."""
        return filled(LexicalEmbedder(), self.folder / "vectors", self.documents)

    @cached_property
    def bank(self) -> MacBank:
        """All documents, in the order of their questions."""
        return self.added("bank", self.documents)

    def added(self, name: str, documents: Sequence[Document]) -> MacBank:
        """A bank of documents."""
        bank = MacBank(self.folder / name, self.mac)
        if self.apart:
            documents = as_documents([sentence for document in documents for sentence in sentences(document.text)])
        bank.add(self.engine, documents, progress=False)
        return bank

    def written(self, name: str, own: Sequence[Mapping[str, str]], tokens: Tensor) -> MacBank:
        """A bank of given modulations (K, T, D) of documents (id -> hash), written as by `MacBank.merge`."""
        bank = MacBank(self.folder / name, self.mac)
        with bank._writing():
            bank._commit([], [Name(names) for names in own], tokens)
        return bank

    @property
    def own(self) -> list[dict[str, str]]:
        """The documents of each modulation in the bank."""
        return [dict(zip(entry.ids, entry.texts, strict=True)) for entry in self.bank.entries]

    @property
    def chance(self) -> torch.Generator:
        """The same in every run."""
        return torch.Generator().manual_seed(self.seed)


def _documents_of(items: Sequence[Item]) -> list[Document]:
    return [document for item in items for document in item.documents]


def filled(embedder: LexicalEmbedder | None, path: Path, documents: Sequence[Document]) -> VectorStore:
    """A store in a new folder."""
    store = VectorStore(embedder, path, progress=False)
    store.add(documents)
    return store
