"""RTD: mix the model's next-token distribution with that of a datastore's nearest entries (arXiv 2409.20181).

    1. d_i = ||h - k_i||                       for the K entries nearest to the hidden state h (D,)
    2. w   = softmax(-d / T)                   over the K
    3. r(token) = sum of w_i with v_i = token
    4. p   = weight * r + (1 - weight) * p_LM

Heads (MH-RTD): h and the keys are split into H slices, steps 1 to 3 are done for each, and r is the mean. A slice has
about 1/H of the squared distance, which is therefore multiplied by H, as in the authors' release, so that T has the
same meaning for any H.

`distance="squared"` uses the squared L2 distance, as the release does; "plain" its root, as the paper does. The paper
does not say which side its lambda weighs; step 4 is our reading. The calibrated T and the gate are ours: constant
interpolation is known to harm answers that the datastore is not about (arXiv 2305.14625, 2408.11815). The gate leaves a
token to the model if its nearest entry is too far (`rtd/calibrate.py`), or hardly nearer than an entry among the K with
another token.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memograft.decoding.batch_processor import BatchProcessor, Moved, nothing
from memograft.decoding.sampling import is_number
from memograft.errors import SettingsError
from memograft.request import Source
from memograft.rtd.datastore import Datastore
from memograft.rtd.shared import shared_datastore

__all__ = ["Rtd", "agreed", "as_rtd", "merged", "neighbour_weights"]

_LEAST = 1e-30  # fraction of p_LM kept at weight 1, so that constraints never mask everything
_MOVED = 1e-6  # probability below which an entry is not reported
_CLEAR = 0.6  # fraction of the squared distance to the nearest entry with another token; see `agreed`


@dataclass(frozen=True)
class Rtd(BatchProcessor):
    """Uses a datastore for a request: `Request(..., processors=[Rtd(datastore)])`, with or without a memory.

    Attributes:
        datastore: the datastore.
        k: K, the number of entries that vote on each token.
        temperature: T, in units of the distance; "auto" predicts the datastore's own entries best.
        weight: of the datastore against the model, 0 to 1. At 0.3 it decides if the model is unsure; from about 0.6 it
            overrides a model that is sure.
        heads: H, which must divide D.
        gate: "auto" leaves a token to the model if its nearest entry is farther than the datastore's entries typically
            are from each other, or if near entries disagree. None changes every token.
        distance: "squared" or "plain" L2.

    Raises:
        SettingsError: a value is out of its range.
    """

    datastore: Datastore
    k: int = 32
    temperature: float | Literal["auto"] = "auto"
    weight: float = 0.3
    heads: int = 1
    gate: Literal["auto"] | None = "auto"
    distance: Literal["squared", "plain"] = "squared"

    def __post_init__(self) -> None:
        for name in ("k", "heads"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SettingsError(f"`{name}` must be a whole number of at least 1, got {value!r}; leave it out")
        if self.temperature != "auto" and not (is_number(self.temperature) and 0 < self.temperature < math.inf):
            raise SettingsError(f'`temperature` must be above 0, or "auto", got {self.temperature!r}')
        if not (is_number(self.weight) and 0 <= self.weight <= 1):
            raise SettingsError(f"`weight` must be between 0 and 1, got {self.weight!r}; 0.3 is the default")
        if self.gate not in ("auto", None):
            raise SettingsError(f'`gate` must be "auto", or None to change every token, got {self.gate!r}')
        if self.distance not in ("squared", "plain"):
            raise SettingsError(f'`distance` must be "squared" or "plain", got {self.distance!r}')
        if len(self.datastore):
            self.datastore.prepare(self.heads)

    @property
    def place(self) -> Literal["ffn_input", "head_input"]:
        """The place of the datastore's keys."""
        return self.datastore.header.place

    def check(self, fingerprint: str) -> None:
        """Refuse a model that the datastore was not built with."""
        self.datastore.check(fingerprint)

    def source(self, number: int) -> Source:
        """The datastore's source with that number."""
        return self.datastore.source(number)

    def __call__(self, states: Tensor, logits: Tensor) -> tuple[Tensor, Callable[[NDArray[np.int64]], Moved]]:
        """(G, D), (G, V) -> (G, V) log-probabilities; rows that the gate leaves to the model keep their logits."""
        if self.weight == 0:
            return logits, nothing
        found = self.datastore.nearest(states.float().cpu().numpy(), self.k, self.heads)
        near = np.isfinite(found.closest)
        if not near.any():
            return logits, nothing
        calibration = self.datastore.header.calibration
        if self.gate == "auto":
            near &= (found.closest <= calibration["gate"]) & agreed(found.distances, found.values)
        t = calibration["temperature"][self.distance] if self.temperature == "auto" else self.temperature
        w = neighbour_weights(found.distances, float(t), self.distance)
        w[~near] = 0
        p = merged(w, found.values, logits, self.weight)

        def moved(tokens: NDArray[np.int64]) -> Moved:
            at = np.nonzero((found.values == tokens[:, None, None]) & (self.weight * w > _MOVED))
            return Moved(at[0], found.sources[at], found.positions[at], self.weight * w[at])

        return torch.where(torch.from_numpy(near).to(p.device)[:, None], p, logits), moved


def as_rtd(value: Datastore | Rtd | str | Path | None) -> Rtd | None:
    """Convert a `datastore` argument: an Rtd, a Datastore, or the folder of one.

    Raises:
        SettingsError: it is none of these.
        StoreError: the folder has no datastore.
    """
    if value is None or isinstance(value, Rtd):
        return value
    if isinstance(value, str | Path) and str(value).strip():
        return Rtd(shared_datastore(value))
    if isinstance(value, Datastore):
        return Rtd(value)
    raise SettingsError(
        f"`datastore` must be a Datastore, Rtd(datastore, ...), the folder of one, or None, got {reprlib.repr(value)}; "
        "make one with Datastore.build"
    )


def agreed(distances: NDArray[np.float64], values: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Squared distances and tokens (G, H, K) -> (G,): whether in at least half of the heads the nearest entry is clear.

    It is clear if its squared distance is at most `_CLEAR` times that of the nearest of the K with another token.
    """
    otherwise = np.where(values != values[..., :1], distances, np.inf).min(-1)
    return np.asarray((distances[..., 0] <= _CLEAR * otherwise).mean(1) >= 0.5)


def neighbour_weights(distances: NDArray[np.float64], t: float, distance: str) -> NDArray[np.float64]:
    """Squared distances between slices (G, H, K) -> weights (G, H, K), which sum to 1 over H and K. Steps 1 and 2."""
    heads = distances.shape[1]
    d = distances * heads
    d = d if distance == "squared" else np.sqrt(d)
    w = np.exp(-(d - d[..., :1].clip(max=np.finfo(np.float64).max)) / t)
    return np.asarray(w / w.sum(-1, keepdims=True).clip(min=np.finfo(np.float64).tiny) / heads)


def merged(w: NDArray[np.float64], values: NDArray[np.integer], logits: Tensor, weight: float) -> Tensor:
    """Weights and tokens of entries (G, H, K), logits (G, V) -> log p (G, V). Steps 3 and 4."""
    tokens = torch.from_numpy(values.astype(np.int64)).flatten(1).to(logits.device)
    votes = torch.from_numpy(w.astype(np.float32)).flatten(1).to(logits.device)
    r = torch.zeros_like(logits).scatter_add_(1, tokens, votes).gather(1, tokens)
    p = logits.log_softmax(-1).add_(math.log(max(1 - weight, _LEAST)))
    # Only for tokens with a vote: logarithms of the whole vocabulary take longer than the search.
    return p.scatter_(1, tokens, torch.logaddexp((weight * r).log(), p.gather(1, tokens)))
