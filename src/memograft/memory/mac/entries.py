"""The entries of a bank of modulations, and how the nearest are merged."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from memograft.documents import Document

__all__ = ["Entry", "Name", "digest", "merged"]


@dataclass(frozen=True)
class Entry:
    """A modulation of a bank.

    Attributes:
        ids: of the documents that it is made of: one, or several that were merged.
        texts: hashes of their texts.
        count: how many modulations were merged to it; 1 if none.
        file: that has it.
        row: in that file.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    count: int
    file: str
    row: int


@dataclass(frozen=True)
class Name:
    """Of a new modulation: ids and hashes of the texts of its documents, and how many were merged to it."""

    texts: Mapping[str, str]
    count: int = 1

    @classmethod
    def new(cls, document: Document) -> Name:
        """Of a document alone."""
        return cls({document.id: digest(document)})

    @classmethod
    def of(cls, entry: Entry) -> Name:
        """Of an entry, which is written again."""
        return cls(dict(zip(entry.ids, entry.texts, strict=True)), entry.count)


def merged(tokens: Tensor, names: Sequence[Name], most: int) -> tuple[list[Name], Tensor]:
    """Merge the nearest of (K, T, D) until `most` are left."""
    tokens, own, none = tokens.clone(), list(names), torch.tensor(-2.0)
    there = torch.ones(len(tokens), dtype=torch.bool)
    directions = normalize(tokens.mean(1), dim=-1)
    near = directions @ directions.T
    near.fill_diagonal_(-2)
    best, partner = near.max(1)  # of each, so that a merge need not look at all pairs
    for _ in range(len(tokens) - most):
        a = int(best.argmax())
        b = int(partner[a])
        total = own[a].count + own[b].count
        tokens[a] = (own[a].count * tokens[a] + own[b].count * tokens[b]) / total
        own[a], there[b] = Name({**own[a].texts, **own[b].texts}, total), False
        directions[a] = normalize(tokens[a].mean(0), dim=-1)
        near[a] = near[:, a] = (directions @ directions[a]).where(there, none)
        near[b] = near[:, b] = near[a, a] = none
        stale = (partner == a) | (partner == b) | (near[:, a] > best)
        stale[a] = stale[b] = True
        best[stale], partner[stale] = near[stale].max(1)
    left = there.nonzero().flatten().tolist()
    return [own[n] for n in left], tokens[left]


def digest(document: Document) -> str:
    """Hash of a document's text, 16 hex digits."""
    return hashlib.sha256(document.text.encode("utf-8", "replace")).hexdigest()[:16]
