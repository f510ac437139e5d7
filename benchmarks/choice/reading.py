"""Hidden states and likelihoods of many prompts for `rtd_choice.py`: computed once, then scored by every method.

`Engine.choose` runs the model again for every setting. This module runs the model once for each prompt and scores the
result with the parts of `Rtd` (`Datastore.nearest`, `neighbour_weights`). The benchmark compares these scores with
those of `choose`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from memograft import Datastore, Engine
from memograft.decoding.ends import end_tokens
from memograft.evaluation.provenance import commit, versions
from memograft.model.prefill import prefill, prefill_segment
from memograft.prompt.continuation import continuation
from memograft.request import Source
from memograft.rtd.examples import Learned
from memograft.rtd.files import Entries
from memograft.rtd.formula import agreed, neighbour_weights

PLACES = ("ffn_input", "head_input")
_ARRAYS = ("chosen", "among", "tokens", "rows", "positions")  # of `Read`, besides `states`
Floats = NDArray[np.float64]
Message = dict[str, str]


@dataclass(frozen=True)
class Read:
    """The results before each of N tokens of R rows.

    Attributes:
        states: place -> (N, D), the keys that a datastore would have.
        chosen: (N,) log-probability of the token itself.
        among: (N, L) log-probabilities of the labels.
        tokens: (N,) the expected tokens.
        rows: (N,) the row of each token; rows that do not fit the window have no tokens.
        positions: (N,) positions of the tokens in their answers.
    """

    states: dict[str, NDArray[np.float32]]
    chosen: Floats
    among: Floats
    tokens: NDArray[np.int32]
    rows: NDArray[np.int32]
    positions: NDArray[np.int32]

    def first(self, among: Sequence[int]) -> Read:
        """Return only the first token of each of these rows."""
        return self.where((self.positions == 0) & np.isin(self.rows, np.asarray(among)))

    def where(self, mask: NDArray[np.bool_]) -> Read:
        """Return only these tokens."""
        states = {place: keys[mask] for place, keys in self.states.items()}
        arrays = (self.chosen, self.among, self.tokens, self.rows, self.positions)
        return Read(states, *(array[mask] for array in arrays))


def read(
    engine: Engine,
    asked: Sequence[tuple[list[Message], str]],
    labels: Sequence[str] = (),
    *,
    end: bool = False,
    batch: int = 32,
    folder: Path | None = None,
) -> Read:
    """Run conversations and their answers, with the end token if `end`; rows that do not fit are left out.

    The common beginning of all prompts (the shots) is run once. With a folder, the result is kept there, and read from
    there if the same commit has kept it.
    """
    if folder is None:
        return _run(engine, asked, labels, end, batch)
    about = [engine.fingerprint, engine.max_length, commit(), versions(), asked, list(labels), end]
    path = folder / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]}.npz"
    if not path.is_file():
        found = _run(engine, asked, labels, end, batch)
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez(file, **found.states, **{name: getattr(found, name) for name in _ARRAYS})
        part.replace(path)  # a file with this name is complete
    with np.load(path) as kept:
        return Read({place: kept[place] for place in PLACES}, *(kept[name] for name in _ARRAYS))


def _run(
    engine: Engine, asked: Sequence[tuple[list[Message], str]], labels: Sequence[str], end: bool, batch: int
) -> Read:
    def run(backbone: Any, builder: Any) -> Read:
        ends = end_tokens(backbone, builder.tokenizer)[:1] if end else ()
        rows: list[tuple[int, Learned]] = []
        for number, (messages, answer) in enumerate(asked):
            prompt, said = continuation(builder, messages, (), answer)
            ids = (*prompt.ids, *said, *ends)
            if len(ids) <= engine.max_length:
                rows.append((number, Learned(ids, len(prompt.ids))))
        wanted = [continuation(builder, asked[0][0], (), label)[1][0] for label in labels]
        shared = _shared([row.ids[: row.first] for _, row in rows])
        prefix = prefill_segment(backbone, rows[0][1].ids[:shared]) if shared >= 16 else None
        rows.sort(key=lambda item: len(item[1].ids))
        parts = [_batch(backbone, rows[at : at + batch], prefix, wanted) for at in range(0, len(rows), batch)]
        states = {place: np.concatenate([part.states[place] for part in parts]) for place in PLACES}
        merged = Read(states, *(np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS))
        order = np.lexsort((merged.positions, merged.rows))
        states = {place: keys[order] for place, keys in states.items()}
        return Read(states, *(getattr(merged, name)[order] for name in _ARRAYS))

    return engine.with_model(run)


@torch.no_grad()
def _batch(backbone: Any, rows: Sequence[tuple[int, Learned]], prefix: Any, labels: Sequence[int]) -> Read:
    filled = prefill(backbone, [row.ids for _, row in rows], 0, [prefix] * len(rows))
    lines, columns = [], []
    for line, (_, row) in enumerate(rows):
        before = filled.columns(line, range(row.first - 1, len(row.ids) - 1))
        lines.append(torch.full_like(before, line))
        columns.append(before)
    at = torch.cat(lines), torch.cat(columns)
    x, residual = filled.x[at], filled.residual[at]
    hidden = backbone.hidden(x[None], residual[None])[0]
    logp = backbone.finish(backbone.head(hidden)).log_softmax(-1)
    tokens = torch.tensor([token for _, row in rows for token in row.ids[row.first :]], device=logp.device)
    counts = [len(row.ids) - row.first for _, row in rows]
    return Read(
        {"ffn_input": x.float().cpu().numpy(), "head_input": hidden.float().cpu().numpy()},
        logp.gather(1, tokens[:, None])[:, 0].double().cpu().numpy(),
        logp[:, list(labels)].double().cpu().numpy(),
        tokens.int().cpu().numpy(),
        np.repeat(np.array([number for number, _ in rows], np.int32), counts),
        np.concatenate([np.arange(count, dtype=np.int32) for count in counts]),
    )


def _shared(prompts: Sequence[tuple[int, ...]]) -> int:
    """Return the number of tokens with which all prompts begin; at least one token of each prompt is left."""
    low, high = min(prompts), max(prompts)
    count = 0
    while count < min(len(low), len(high)) - 1 and low[count] == high[count]:
        count += 1
    return count


def store_of(engine: Engine, learned: Read, place: Any, shuffle: int | None = None) -> Datastore:
    """Return the datastore that `Datastore.build` makes of the same examples, with one source for each row.

    With `shuffle`, a seed, tokens are exchanged among the entries of the same position. Keys, tokens and their
    frequencies stay the same, but keys no longer belong to their tokens.
    """
    values = learned.tokens.copy()
    if shuffle is not None:
        rng = np.random.default_rng(shuffle)
        for position in np.unique(learned.positions):
            same = np.flatnonzero(learned.positions == position)
            values[same] = values[rng.permutation(same)]
    store = Datastore.build(engine, [], place=place, progress=False)
    numbers, sources = np.unique(learned.rows, return_inverse=True)
    entries = Entries(learned.states[place], values, sources.astype(np.int32), learned.positions)
    store.extend(entries, [Source(str(number), "example") for number in numbers])
    return store


@dataclass(frozen=True)
class Found:
    """The search results for N tokens, enough for any `k` up to K, with one number of heads."""

    distances: Floats  # (N, H, K)
    values: NDArray[np.int32]  # (N, H, K)
    near: NDArray[np.bool_]  # (N,) whether an entry is within the gate's distance
    temperature: float
    known: dict[int, Floats] = field(default_factory=dict)  # k -> chances, which weights and gates share

    def open(self, k: int) -> NDArray[np.bool_]:
        """(N,) whether the gate "auto" lets RTD act on the nearest `k`."""
        return self.near & agreed(self.distances[..., :k], self.values[..., :k])

    def chances(self, k: int, tokens: NDArray[Any]) -> Floats:
        """(N, L) probability r of tokens (N, L) or (L,), from the nearest `k`; always called with the same tokens."""
        if k not in self.known:
            w = neighbour_weights(self.distances[..., :k], self.temperature, "squared")
            values = self.values[..., :k]
            wanted = np.broadcast_to(tokens, (len(values), np.shape(tokens)[-1]))
            each = [(w * (values == wanted[:, n, None, None])).sum((1, 2)) for n in range(wanted.shape[1])]
            self.known[k] = np.stack(each, 1)
        return self.known[k]


def search(store: Datastore, states: NDArray[np.float32], k: int, heads: int) -> Found:
    """Search for N states (N, D), 256 at a time."""
    parts = [store.nearest(states[at : at + 256], k, heads) for at in range(0, len(states), 256)]
    calibration = store.header.calibration
    closest = np.concatenate([part.closest for part in parts])
    return Found(
        np.concatenate([part.distances for part in parts]),
        np.concatenate([part.values for part in parts]),
        closest <= calibration["gate"],
        float(calibration["temperature"]["squared"]),
    )
