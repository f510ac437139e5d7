"""After any sequence of calls that Hypothesis generates, a store and a dict have the same contents."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from test_vector_store_kills import LetterEmbedder, open_store

from memograft import Datastore, Source
from memograft.documents import Document
from memograft.passages.vector_store import VectorStore
from memograft.rtd.files import Entries
from test_datastore import contents, new

BOUNDS = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    derandomize="MEMOGRAFT_SEED" not in os.environ,  # make soak uses other sequences
    database=None,
    suppress_health_check=list(HealthCheck),
)
IDS = st.lists(st.sampled_from("abcdefgh"), max_size=4)
NUMBERS = st.integers(-3, 3)
DOCUMENTS = st.lists(
    st.builds(
        Document,
        st.text("abcde", min_size=1, max_size=8),
        st.sampled_from("abcdefgh"),
        st.fixed_dictionaries({}, optional={"n": NUMBERS, "tag": st.text(max_size=2).filter(lambda t: "\0" not in t)}),
    ),
    max_size=5,
)


class Folder(RuleBasedStateMachine):
    """A machine with a folder of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store: Any = None

    def teardown(self) -> None:
        if self.store is not None:
            self.store.close()
        shutil.rmtree(self.folder)


class VectorStoreStates(Folder):
    """id -> document."""

    @initialize(kind=st.sampled_from(["flat", "hnsw", "ivf"]))
    def begin(self, kind: str) -> None:
        self.kind, self.model = kind, dict[str, Document]()
        self.store: VectorStore = open_store(self.folder / "store", kind)

    @rule(documents=DOCUMENTS)
    def add(self, documents: list[Document]) -> None:
        assert self.store.add(documents) == [document.id for document in documents]
        self.model |= {document.id: document for document in documents}

    @rule(ids=IDS)
    def delete(self, ids: list[str]) -> None:
        assert self.store.delete(ids) == len(self.model.keys() & set(ids))
        self.model = {id: document for id, document in self.model.items() if id not in ids}

    @rule(n=NUMBERS)
    def delete_by_a_filter(self, n: int) -> None:
        kept = {id: document for id, document in self.model.items() if document.metadata.get("n", n) >= n}
        assert self.store.delete(where={"n": {"$lt": n}}) == len(self.model) - len(kept)
        self.model = kept

    @rule(ids=IDS)
    def get(self, ids: list[str]) -> None:
        assert self.store.get(ids) == [self.model[id] for id in ids if id in self.model]

    @rule(text=st.text("abcde", min_size=1, max_size=8), k=st.integers(1, 10), n=st.none() | NUMBERS)
    def search(self, text: str, k: int, n: int | None) -> None:
        hits = self.store.search(text, k, None if n is None else {"n": {"$gte": n}})
        among = [d for d in self.model.values() if n is None or ("n" in d.metadata and d.metadata["n"] >= n)]
        assert all(self.model[hit.document.id] == hit.document and hit.document in among for hit in hits)
        assert len({hit.document.id for hit in hits}) == len(hits) == min(k, len(among))
        if among:
            rows = LetterEmbedder().embed_documents([text, *(document.text for document in among)])
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            best = np.sort(rows[1:] @ rows[0])[::-1][:k]
            np.testing.assert_allclose([hit.score for hit in hits], best, atol=1e-5)

    @rule()
    def compact(self) -> None:
        self.store.compact()

    @rule()
    def persist(self) -> None:
        self.store.persist()

    @rule(closed=st.booleans())
    def reopen(self, closed: bool) -> None:
        if closed:
            self.store.close()
            self.store = open_store(self.folder / "store", self.kind)
        else:
            with VectorStore(LetterEmbedder(), self.folder / "store", read_only=True) as reader:
                assert {document.id: document for document in reader} == self.model

    @invariant()
    def holds_what_the_dict_holds(self) -> None:
        if self.store is not None:
            assert {document.id: document for document in self.store} == self.model
            assert len(self.store) == len(self.model)


class DatastoreStates(Folder):
    """id -> (position, value, key) of its entries."""

    @initialize()
    def begin(self) -> None:
        self.model: dict[str, list[tuple[int, int, bytes]]] = {}
        self.store: Datastore = new(self.folder / "store", "flat")
        self.extended = 0

    @rule(counts=st.lists(st.integers(1, 4), min_size=1, max_size=4), seed=st.integers(0, 99))
    def extend(self, counts: list[int], seed: int) -> None:
        self.extended += 1
        # No equal keys: of equally near entries, any may be found.
        rng, total = np.random.default_rng([seed, self.extended]), sum(counts)
        ids = [f"{len(self.model)}-{seed}-{n}" for n in range(len(counts))]
        if self.model.keys() & set(ids):
            return
        sources = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
        positions = np.concatenate([np.arange(n) for n in counts]).astype(np.int32)
        keys, values = rng.normal(size=(total, 16)).astype(np.float32), rng.integers(0, 50, total).astype(np.int32)
        self.store.extend(Entries(keys, values, sources, positions), [Source(id, id, "", {}) for id in ids])
        for key, value, source, position in zip(keys, values, sources, positions, strict=True):
            self.model.setdefault(ids[source], []).append((int(position), int(value), key.tobytes()))

    @rule(places=st.lists(st.integers(0, 12), max_size=4))
    def delete(self, places: list[int]) -> None:
        ids = list(self.model)
        gone = {ids[place] for place in places if place < len(ids)}
        assert self.store.delete([*gone, "unknown"]) == len(gone)
        self.model = {id: entries for id, entries in self.model.items() if id not in gone}

    @rule(seed=st.integers(0, 99), k=st.integers(1, 6))
    def search(self, seed: int, k: int) -> None:
        state = np.random.default_rng(seed).normal(size=(1, 16)).astype(np.float32)
        entries = [entry for of_one in self.model.values() for entry in of_one]
        found = self.store.nearest(state, k)
        assert found.values.shape[-1] == min(k, len(entries))
        if entries:
            keys = np.stack([np.frombuffer(key, np.float32) for *_, key in entries])
            order = np.argsort(((keys - state) ** 2).sum(1))[:k]
            assert found.values[0, 0].tolist() == [entries[n][1] for n in order]

    @rule()
    def compact(self) -> None:
        self.store.compact(progress=False)

    @rule(copied=st.booleans())
    def reopen(self, copied: bool) -> None:
        folder = self.store.path
        if copied:
            folder = self.store.save(folder.with_name(f"{folder.name}x"))
        self.store.close()
        self.store = Datastore.open(folder)

    @invariant()
    def holds_what_the_dict_holds(self) -> None:
        if self.store is not None:
            assert contents(self.store) == self.model
            assert self.store.ids() == list(self.model)


TestVectorStore = VectorStoreStates.TestCase
TestVectorStore.settings = BOUNDS
TestDatastore = DatastoreStates.TestCase
TestDatastore.settings = BOUNDS
