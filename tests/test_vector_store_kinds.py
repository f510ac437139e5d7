"""The vector store's approximate indexes: what they find, when they are trained, and how vectors are compressed."""

from __future__ import annotations

import numpy as np
import pytest

from memograft.passages.vector_store import IndexSettings, VectorStore
from store_doubles import NumberEmbedder, brute_force, found, numbered


@pytest.mark.parametrize(
    "settings",
    [
        IndexSettings("hnsw"),
        IndexSettings("ivf", ivf_train_at=2000, nprobe=20),
        IndexSettings("ivfpq", ivf_train_at=2000, nprobe=20),
    ],
    ids=lambda settings: settings.kind,
)
def test_approximate_search_finds_nearly_the_same(settings) -> None:
    embedder = NumberEmbedder()
    store = VectorStore(embedder, index=settings)
    store.add(numbered(range(3000)))
    store.delete([f"id{n}" for n in range(0, 3000, 2)])
    alive = list(range(1, 3000, 2))
    queries = np.random.default_rng(2).normal(size=(30, 16))
    hits = sum(
        len(set(found(store.search_by_vector(query, 10))) & set(brute_force(embedder, alive, query, 10)))
        for query in queries
    )
    assert hits >= 0.9 * 300, f"only {hits} of 300 neighbours found"
    # Filters that match few passages (scored one by one) and many (pushed down to FAISS).
    for where, count in (({"n": {"$lt": 25}}, 12), ({"n": {"$lt": 2400}}, 1200)):
        assert len(store.search_by_vector(queries[0], 12, where)) == min(12, count)
        assert len(store.search_by_vector(queries[0], 5000, where)) == count
    assert all(n % 2 for n in found(store.search_by_vector(queries[0], 200)))


def test_tombstones_leave_room_for_the_rest_even_with_a_tiny_queue() -> None:
    embedder = NumberEmbedder()
    store = VectorStore(embedder, index=IndexSettings("hnsw", hnsw_links=4, hnsw_search=1))
    store.add(numbered(range(1500)))
    query = embedder.table[0]
    nearest = brute_force(embedder, list(range(1500)), query, 700)
    store.delete([f"id{n}" for n in nearest])
    hits = found(store.search_by_vector(query, 20))
    assert len(hits) == 20
    assert not set(hits) & set(nearest)


@pytest.mark.parametrize("kind", ["ivf", "ivfpq"])
def test_clusters_wait_for_enough_vectors_and_are_computed_again_from_four_times_as_many(kind) -> None:
    embedder = NumberEmbedder()
    store = VectorStore(embedder, index=IndexSettings(kind, ivf_train_at=400))
    store.add(numbered(range(399)))
    assert store._cache.index.is_exact
    store.add(numbered([399]))
    first = store._cache.index
    assert not first.is_exact
    assert first.is_compressed == (kind == "ivfpq")
    store.add(numbered(range(400, 780)))  # 400 vectors have 10 clusters, 780 would have 20
    assert store._cache.index is not first
    second = store._cache.index
    store.add(numbered(range(780, 1500)))
    assert store._cache.index is second
    assert found(store.search("77", k=1)) == [77]


def test_compressed_vectors_choose_candidates_and_exact_ones_give_the_order_and_the_scores() -> None:
    embedder = NumberEmbedder(dimension=32)
    queries = np.random.default_rng(5).normal(size=(20, 32))
    best = [brute_force(embedder, list(range(2000)), query, 10) for query in queries]
    shares = {}
    for rerank in (1, 3, 2000):
        store = VectorStore(embedder, index=IndexSettings("ivfpq", ivf_train_at=1000, nprobe=999, rerank=rerank))
        store.add(numbered(range(2000)))
        hits = [store.search_by_vector(query, 10) for query in queries]
        shares[rerank] = sum(len(set(found(own)) & set(right)) for own, right in zip(hits, best, strict=True)) / 200
        for query, own in zip(queries, hits, strict=True):
            units = store.vectors([hit.document.id for hit in own])
            scores = [hit.score for hit in own]
            np.testing.assert_allclose(scores, units @ query / np.linalg.norm(query), atol=1e-5)
            assert scores == sorted(scores, reverse=True)
    assert [found(own) for own in hits] == best, "with every passage as a candidate, the search is exact"
    assert shares[1] < shares[3] < shares[2000] == 1


@pytest.mark.parametrize(("dimension", "size"), [(384, 48), (768, 96), (300, 50), (16, 2), (7, 1), (383, 383)])
def test_a_compressed_vector_has_a_byte_for_at_most_eight_dimensions(dimension, size) -> None:
    assert IndexSettings("ivfpq").code_size(dimension) == size
    IndexSettings("ivfpq").check(dimension)
