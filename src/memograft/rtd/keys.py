"""Compute the keys of a datastore: the hidden states before the learned tokens, with one prefill per sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from memograft.decoding.ends import end_tokens
from memograft.errors import SettingsError
from memograft.model.backbone import Backbone
from memograft.model.prefill import prefill
from memograft.prompt.builder import PromptBuilder
from memograft.rtd.examples import Example, Learned, encode
from memograft.rtd.files import Entries, Place
from memograft.serving.host import Host

__all__ = ["Place", "check_place", "hidden_states", "learn"]


def check_place(place: object) -> None:
    """Refuse an unknown place."""
    if place not in get_args(Place):
        raise SettingsError(
            f'`place` must be "ffn_input" or "head_input", got {place!r}; memories do not change "ffn_input"'
        )


@torch.no_grad()
def hidden_states(backbone: Backbone, batch: Sequence[Learned], place: Place) -> NDArray[np.float32]:
    """(N, D) states before each learned token of the batch, in order of the sequences."""
    filled = prefill(backbone, [item.ids for item in batch], 0)
    rows, columns = [], []
    for row, item in enumerate(batch):
        before = filled.columns(row, range(item.first - 1, len(item.ids) - 1))
        rows.append(torch.full_like(before, row))
        columns.append(before)
    at = torch.cat(rows).to(filled.x.device), torch.cat(columns).to(filled.x.device)
    states = filled.x[at]
    if place == "head_input":
        states = backbone.hidden(states[None], filled.residual[at][None])[0]
    return states.float().cpu().numpy()


def _states(batch: Sequence[Learned], place: Place, backbone: Backbone, _: PromptBuilder) -> NDArray[np.float32]:
    return hidden_states(backbone, batch, place)


def learn(
    engine: Host, examples: Sequence[Example], place: Place, stride: int | None, batch_size: int
) -> Iterator[Entries]:
    """The entries of complete examples, one batch of sequences at a time; sources are numbered from 0."""

    def encoded(backbone: Backbone, builder: PromptBuilder) -> list[tuple[int, Learned]]:
        ends = end_tokens(backbone, builder.tokenizer)
        window = engine.max_length
        return [(n, part) for n, e in enumerate(examples) for part in encode(builder, e, ends, window, stride)]

    parts = engine.with_model(encoded)
    for start in range(0, len(parts), batch_size):
        batch = parts[start : start + batch_size]
        sequences = [part for _, part in batch]
        keys = engine.with_model(partial(_states, sequences, place))
        counts = [len(part.ids) - part.first for part in sequences]
        places = [np.arange(part.position, part.position + len(part.ids) - part.first) for part in sequences]
        yield Entries(
            keys,
            np.concatenate([np.array(part.ids[part.first :], np.int32) for part in sequences]),
            np.repeat(np.array([number for number, _ in batch], np.int32), counts),
            np.concatenate(places).astype(np.int32),
        )
