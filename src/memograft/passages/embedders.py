"""Embedders: the protocol, one without a model, sentence-transformers models, and placeholders without any.

An embedder turns N texts into an (N, D) float32 array of unit vectors, so that a dot product is a cosine. `fingerprint`
identifies vectors that may be compared with each other; `embedder_from_config` builds an embedder from its `config()`.
Importing this module imports neither torch nor scikit-learn.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, NoReturn, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from memograft.errors import MissingExtraError, SettingsError
from memograft.storage.disk import JsonObject

__all__ = [
    "Embedder",
    "GivenVectors",
    "LexicalEmbedder",
    "NoVectors",
    "SentenceTransformerEmbedder",
    "embedder_from_config",
    "embedder_named",
]

FloatArray = NDArray[np.float32]


@runtime_checkable
class Embedder(Protocol):
    """The interface of embedders. Both embedding methods must be thread-safe."""

    @property
    def dimension(self) -> int:
        """D, the length of every vector."""

    @property
    def fingerprint(self) -> str:
        """Equal for two embedders only if their vectors can be compared. A store refuses another fingerprint."""

    def config(self) -> JsonObject:
        """JSON values from which `embedder_from_config` builds this embedder again."""

    def embed_documents(self, texts: list[str]) -> FloatArray:
        """Return (N, D) float32 unit vectors of N passages."""

    def embed_query(self, text: str) -> FloatArray:
        """Return the (D,) float32 unit vector of one question."""


def unit_rows(vectors: FloatArray) -> FloatArray:
    """Scale the rows of (N, D) to length 1. Rows of zeros stay zero."""
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)  # float32 squares overflow at 1e19
    return np.asarray(vectors / np.where(norms > 0, norms, 1), dtype=np.float32)


# ---------------------------------------------------------------------------------------------------- lexical

_WORD = re.compile(r"\w+")
_COLUMNS = 2**20  # width of the hashed space before the projection, so that collisions are rare
_COPIES = 4  # dimensions per hashed column, so that two columns rarely collide in all of them
_STOP_WEIGHT = 0.02  # of "what", "is", "the", ...: only matters for texts without other words
_DIGIT_WEIGHT = 1.3  # of words with a digit: years, versions and identifiers are rare
_PAIR_WEIGHT = 0.15
_GRAM_WEIGHT = 1.0  # norm of the vector of a word's character n-grams
_GRAM_LENGTHS = (4, 5)


class LexicalEmbedder:
    """Embeds texts without a model: deterministic, offline, and without fitting or download.

    Use it where vectors are required, such as in the frameworks' indexes. A store without an embedder searches by BM25,
    which finds more. Like BM25 it finds shared words, not meaning: "car" and "automobile" are unrelated. A text becomes
    a weighted bag of words, pairs of adjacent words and character n-grams (so "memorise" matches "memorising"), with
    logarithmic counts and low weights for English stop words. The bag is hashed with fixed signs (Weinberger et al.,
    "Feature hashing for large scale multitask learning", 2009) and projected to `dimension` dense numbers (Achlioptas,
    "Database-friendly random projections", 2003).

    nDCG@10 on the 300 test queries of SciFact (5,183 abstracts, title and text joined): 0.560 at D=1024, 0.498 at 512,
    0.574 at 2048. BM25, which uses the frequency of words in the collection, reaches 0.684 (benchmarks/search.py). The
    weights were chosen on the same queries, among about thirty settings, so expect slightly less on other data.

    Args:
        dimension: D, at least 64. The noise of a cosine is about 1 / sqrt(D).

    Raises:
        SettingsError: `dimension` is too small or not a whole number.

    Example:
        >>> embedder = LexicalEmbedder()
        >>> passages = embedder.embed_documents(["Paris is the capital of France.", "Bergamot is a citrus fruit."])
        >>> [bool(score > 0.5) for score in passages @ embedder.embed_query("the capital of France")]
        [True, False]
    """

    def __init__(self, dimension: int = 1024) -> None:
        if isinstance(dimension, bool) or not isinstance(dimension, int) or dimension < 64:
            raise SettingsError(f"`dimension` must be a whole number of at least 64, got {dimension!r}; try 1024")
        self._dimension = dimension

    @property
    def dimension(self) -> int:
        """D, the length of every vector."""
        return self._dimension

    @property
    def fingerprint(self) -> str:
        """Name, version and D. The version is increased with every change of the vectors."""
        return f"lexical-1-{self._dimension}"

    def config(self) -> JsonObject:
        """JSON values from which `embedder_from_config` builds this embedder again."""
        return {"type": "lexical", "dimension": self._dimension}

    def embed_documents(self, texts: list[str]) -> FloatArray:
        """Return (N, D) float32 unit vectors; zeros for a text without letters and digits."""
        if not texts:
            return np.zeros((0, self._dimension), np.float32)
        bags = self._hasher.transform(list(_features(text).items()) for text in texts)
        targets, signs = self._spread(bags.indices)
        rows = np.repeat(np.arange(len(texts)), np.diff(bags.indptr))
        places = rows[:, None] * self._dimension + targets
        values = signs * bags.data[:, None]
        sums = np.bincount(places.ravel(), values.ravel(), minlength=len(texts) * self._dimension)
        return unit_rows(sums.astype(np.float32).reshape(len(texts), self._dimension))

    def embed_query(self, text: str) -> FloatArray:
        """Return the (D,) float32 unit vector of one question."""
        (vector,) = self.embed_documents([text])
        return np.asarray(vector, np.float32)

    @cached_property
    def _hasher(self) -> Any:
        from sklearn.feature_extraction import FeatureHasher

        return FeatureHasher(_COLUMNS, input_type="pair", dtype=np.float32)

    def _spread(self, columns: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the (N, copies) dimensions and signs of N hashed columns: rows of a sparse random projection."""
        starts = columns[:, None].astype(np.uint64) * np.uint64(_COPIES)
        noise = _mix(np.asarray(starts + np.arange(_COPIES, dtype=np.uint64), np.uint64))
        targets = (noise >> np.uint64(8)) % np.uint64(self._dimension)
        return targets.astype(np.int64), np.where(noise & np.uint64(1), 1, -1)


def _mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64 (Steele, Lea and Flood, 2014): a fixed hash of 64-bit integers."""
    z = numbers * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)), dtype=np.uint64)


def _features(text: str) -> dict[str, float]:
    """Weights of the words, word pairs and character n-grams of a text; prefixes separate the three kinds."""
    words = _WORD.findall(text.lower())
    bag: dict[str, float] = {}
    for word, count in Counter(words).items():
        weight = _word_weight(word) * _damped(count)
        bag[f"w:{word}"] = weight
        for gram, share in _grams(word):
            bag[gram] = bag.get(gram, 0.0) + weight * share
    for (first, second), count in Counter(pairwise(words)).items():
        rarity = min(_word_weight(first), _word_weight(second))
        bag[f"p:{first} {second}"] = _PAIR_WEIGHT * rarity * _damped(count)
    return bag


def _damped(count: int) -> float:
    return 1.0 + float(np.log(count))


@lru_cache(maxsize=100_000)
def _word_weight(word: str) -> float:
    """Replaces inverse document frequency, which needs a corpus. Weights by word length were worse on SciFact."""
    if word in _stop_words():
        return _STOP_WEIGHT
    return _DIGIT_WEIGHT if any(character.isdigit() for character in word) else 1.0


@lru_cache(maxsize=100_000)
def _grams(word: str) -> tuple[tuple[str, float], ...]:
    """Character n-grams of a word with marked edges, and the fraction of the word's weight for each."""
    marked = f"<{word}>"
    grams = [marked[i : i + n] for n in _GRAM_LENGTHS for i in range(len(marked) - n + 1)]
    share = _GRAM_WEIGHT / max(len(grams), 1) ** 0.5
    return tuple((f"c:{gram}", share) for gram in grams)


@lru_cache(maxsize=1)
def _stop_words() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS)


# -------------------------------------------------------------------------------------- sentence-transformers


class SentenceTransformerEmbedder:
    """Any sentence-transformers model. It finds similar meaning, not only shared words.

    Questions and passages are embedded with `encode_query` and `encode_document`, which apply the model's own prompts.

    Args:
        model: name on the Hugging Face hub or a local folder.
        revision: commit, tag or branch of the model; part of the fingerprint.
        device: "cpu", "cuda", ...; None lets sentence-transformers choose. Not part of the fingerprint.

    Raises:
        MissingExtraError: sentence-transformers is not installed.
    """

    def __init__(self, model: str, *, revision: str | None = None, device: str | None = None) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise MissingExtraError(
                "SentenceTransformerEmbedder needs sentence-transformers, which is not installed; run "
                'pip install "memograft[sentence-transformers]"'
            ) from error
        self._name = model
        self._revision = revision
        self._model = SentenceTransformer(model, revision=revision, device=device)
        # Measured, because the method that returns the dimension has different names in different versions.
        self._dimension = int(self.embed_query("dimension").shape[0])

    @property
    def dimension(self) -> int:
        """D, the length of every vector."""
        return self._dimension

    @property
    def fingerprint(self) -> str:
        """Name, revision and D. It does not change with the weights of a local folder, so name a revision."""
        return f"sentence-transformers:{self._name}@{self._revision or 'main'}-{self._dimension}"

    def config(self) -> JsonObject:
        """JSON values from which `embedder_from_config` builds this embedder again."""
        return {"type": "sentence-transformers", "model": self._name, "revision": self._revision}

    def embed_documents(self, texts: list[str]) -> FloatArray:
        """Return (N, D) float32 unit vectors of N passages."""
        if not texts:
            return np.zeros((0, self._dimension), np.float32)
        return unit_rows(np.asarray(self._model.encode_document(texts, show_progress_bar=False), np.float32))

    def embed_query(self, text: str) -> FloatArray:
        """Return the (D,) float32 unit vector of one question."""
        rows = unit_rows(np.asarray(self._model.encode_query([text], show_progress_bar=False), np.float32))
        return rows.reshape(-1)


# ------------------------------------------------------------------------------------------- vectors from outside


class GivenVectors:
    """Placeholder for a store whose vectors are computed elsewhere. It cannot embed texts.

    Such a store supports `add(documents, vectors)` and `search_by_vector`; anything that has to embed a text is
    refused.

    Args:
        dimension: D, the length of every vector.

    Raises:
        SettingsError: `dimension` is not a positive whole number.
    """

    def __init__(self, dimension: int) -> None:
        if isinstance(dimension, bool) or not isinstance(dimension, int) or dimension < 1:
            raise SettingsError(f"`dimension` must be a whole number of at least 1, got {dimension!r}; ask its maker")
        self._dimension = dimension

    @property
    def dimension(self) -> int:
        """D, the length of every vector."""
        return self._dimension

    @property
    def fingerprint(self) -> str:
        """Contains only D: the caller must make sure that vectors can be compared."""
        return f"given-{self._dimension}"

    def config(self) -> JsonObject:
        """JSON values from which `embedder_from_config` builds this embedder again."""
        return {"type": "given", "dimension": self._dimension}

    def embed_documents(self, texts: list[str]) -> FloatArray:
        """Raise SettingsError."""
        self._refuse(texts[0] if texts else "")

    def embed_query(self, text: str) -> FloatArray:
        """Raise SettingsError."""
        self._refuse(text)

    def _refuse(self, text: str) -> NoReturn:
        raise SettingsError(
            f"this store's vectors were made elsewhere and it cannot embed text, got {text[:80]!r}; embed it with the "
            "same model, then use add(documents, vectors) and search_by_vector(vector)"
        )


class NoVectors:
    """Placeholder for a store without vectors, which is searched by words only. D is 0."""

    dimension = 0
    fingerprint = "no vectors"

    def config(self) -> JsonObject:
        """JSON values from which `embedder_from_config` builds this embedder again."""
        return {"type": "none"}

    def embed_documents(self, texts: list[str]) -> FloatArray:
        """Return (N, 0) vectors."""
        return np.zeros((len(texts), 0), np.float32)

    def embed_query(self, text: str) -> FloatArray:
        """Raise SettingsError."""
        raise SettingsError(
            f"this store was made without an embedder and has no vectors to compare, got {text[:80]!r}; search it with "
            'mode="text", or make a new one: VectorStore(embedder)'
        )


def embedder_named(name: str, device: str | None = None) -> Embedder:
    """The embedder that the command line calls "lexical", or a model of sentence-transformers."""
    return LexicalEmbedder() if name == "lexical" else SentenceTransformerEmbedder(name, device=device)


def embedder_from_config(config: JsonObject) -> Embedder:
    """Build an embedder from the result of its `config()`.

    Raises:
        SettingsError: the config belongs to none of our embedders.
        MissingExtraError: its optional dependency is not installed.
    """
    match config:
        case {"type": "lexical", "dimension": dimension}:
            return LexicalEmbedder(dimension)
        case {"type": "sentence-transformers", "model": model}:
            return SentenceTransformerEmbedder(model, revision=config.get("revision"))
        case {"type": "given", "dimension": dimension}:
            return GivenVectors(dimension)
        case {"type": "none"}:
            return NoVectors()
    raise SettingsError(
        f"the config of an embedder must be of type lexical, sentence-transformers, given or none, got "
        f"{dict(config)!r}; pass `embedder=` yourself"
    )
