"""Keys and values of documents that prompts began with, for the next prompt that begins with the same ones.

No memory changes them, so they are reused under every memory and under none. They are kept in pieces, one for each
document and whatever stands before it, by a hash of all tokens up to its end: prompts that share only their first
documents share the pieces of these. Held in memory, where the model's device has them, and in a bank's folder.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memograft.storage.locks import made_anew_in_forks

if TYPE_CHECKING:
    from memograft.documents import Document
    from memograft.memory.base import Model
    from memograft.model.kv import Piece, Prefill, Segment
    from memograft.prompt.builder import Prompt

__all__ = ["Place", "Prefixes"]


@dataclass(frozen=True)
class Place:
    """Where in a prompt a piece stands.

    Attributes:
        id: 32 hex digits of what decides the piece: model, dtype, and all tokens up to its end.
        start: its first token.
        end: the one behind its last.
        document: the one that it ends with.
    """

    id: str
    start: int
    end: int
    document: Document


Read = Callable[["Model", Place], "Piece | None"]
Write = Callable[["Model", Place, "Piece"], None]


class Prefixes:
    """Pieces by their ids, at most `max_bytes` of them in memory; those not used for longest go first.

    Args:
        max_bytes: of what is held.
        read: finds what is not held.
        write: keeps a new piece somewhere else too.
    """

    def __init__(self, max_bytes: int, read: Read | None = None, write: Write | None = None) -> None:
        self._max_bytes, self._read, self._write = max_bytes, read, write
        made_anew_in_forks(self._make_lock)
        self._held: OrderedDict[tuple[str, str], Piece] = OrderedDict()  # by id and device
        self.tokens = 0  # whose keys and values were found

    def _make_lock(self) -> None:
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of what is held."""
        with self._lock:
            return sum(piece.nbytes for piece in self._held.values())

    def get(self, model: Model, prompt: Prompt) -> Segment | None:
        """The longest known segment that ends with a document and that the prompt begins with."""
        from memograft.model.kv import chain

        found = []
        for place in _places(model, prompt):
            piece = self._piece(model, place)
            if piece is None:
                break
            found.append((place, piece))
        if not found:
            return None
        end = found[-1][0].end
        self._hold(model, found, found_tokens=end)
        return chain(model.backbone, prompt.ids[:end], [piece for _, piece in found])

    def put(self, model: Model, prompt: Prompt, filled: Prefill, row: int) -> None:
        """Keep what a row of a prefill has of its prompt's documents, as far as it can be cut."""
        from memograft.model.kv import cut

        if not self._max_bytes and self._write is None:
            return
        new = []
        for place in _places(model, prompt):
            with self._lock:
                if (place.id, str(model.backbone.device)) in self._held:
                    continue
            piece = cut(filled, row, place.start, place.end)
            if piece is None:
                break
            new.append((place, piece))
        self._hold(model, new)
        for place, piece in reversed(new if self._write is not None else ()):
            assert self._write is not None
            self._write(model, place, piece)

    def _piece(self, model: Model, place: Place) -> Piece | None:
        with self._lock:
            held = self._held.get((place.id, str(model.backbone.device)))
        return held if held is not None or self._read is None else self._read(model, place)

    def _hold(self, model: Model, pieces: list[tuple[Place, Piece]], found_tokens: int = 0) -> None:
        with self._lock:
            self.tokens += found_tokens
            for place, piece in reversed(pieces):  # the first is the youngest: those behind it are nothing without it
                key = (place.id, str(model.backbone.device))
                self._held[key] = piece
                self._held.move_to_end(key)
            total = sum(held.nbytes for held in self._held.values())
            while total > self._max_bytes:
                _, gone = self._held.popitem(last=False)
                total -= gone.nbytes


def _places(model: Model, prompt: Prompt) -> Iterator[Place]:
    """The pieces that a prompt's documents make, first to last; its last token is decoding's."""
    digest = hashlib.sha256(json.dumps([model.fingerprint, str(model.backbone.model.dtype)]).encode())
    start = 0
    for (_, end), document in zip(prompt.spans, prompt.documents, strict=True):
        end = min(end, len(prompt.ids) - 1)
        if end <= start:
            continue
        digest.update(json.dumps(prompt.ids[start:end]).encode())
        yield Place(digest.hexdigest()[:32], start, end, document)
        start = end
