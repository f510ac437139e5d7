"""Cache of the keys and values of documents at the beginning of prompts, for later prompts that begin with the same.

Memories do not change keys and values, so these are valid with any memory and without one. They are stored in pieces,
one per document with the text before it. A piece's id is a hash of all tokens up to its end, so prompts that share only
their first documents share these pieces. Pieces are kept in memory, on the model's device, and in a bank's folder.
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
    """The place of a piece in a prompt.

    Attributes:
        id: hash of model, dtype and all tokens up to the piece's end, as 32 hex digits.
        start: index of its first token.
        end: index after its last token.
        document: the document that it ends with.
    """

    id: str
    start: int
    end: int
    document: Document


Read = Callable[["Model", Place], "Piece | None"]
Write = Callable[["Model", Place, "Piece"], None]


class Prefixes:
    """Pieces by their ids. At most `max_bytes` are kept in memory; the least recently used are removed first.

    Args:
        max_bytes: size limit of the pieces in memory.
        read: reads a piece that is not in memory.
        write: stores a new piece outside of memory.
        touch: records that the stored piece of an id was used.
    """

    def __init__(
        self,
        max_bytes: int,
        read: Read | None = None,
        write: Write | None = None,
        touch: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._max_bytes, self._read, self._write, self._touch = max_bytes, read, write, touch
        made_anew_in_forks(self._make_lock)
        self._held: OrderedDict[tuple[str, str], Piece] = OrderedDict()  # by id and device
        self.tokens = 0  # number of tokens whose keys and values were found

    def _make_lock(self) -> None:
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Size of the pieces in memory."""
        with self._lock:
            return sum(piece.nbytes for piece in self._held.values())

    def get(self, model: Model, prompt: Prompt) -> Segment | None:
        """The longest known segment that the prompt begins with and that ends with a document.

        If the prompt is longer than a sliding window, `put` could not cut its first documents out of the cache any
        more, so unknown documents are prefilled here, one by one.
        """
        from memograft.model.kv import chain

        found: list[tuple[Place, Piece]] = []
        forgotten, read = self._forgotten(model, prompt), 0
        for place in _places(model, prompt):
            piece = self._known(model, place)
            if piece is None and forgotten:
                piece = self._made(model, prompt, place, [piece for _, piece in found])
                read += place.end - place.start
            if piece is None:
                break
            found.append((place, piece))
        if not found:
            return None
        self._hold(model, found)
        for place, _ in reversed(found):
            self._touch(place.id)
        end = found[-1][0].end
        with self._lock:
            self.tokens += end - read
        return chain(model.backbone, prompt.ids[:end], [piece for _, piece in found], read)

    def put(self, model: Model, prompt: Prompt, filled: Prefill, row: int) -> None:
        """Keep the documents of a row of a prefill, up to the first that cannot be cut out of the cache."""
        from memograft.model.kv import cut

        new = []
        for place in _places(model, prompt) if self._keeps else ():
            with self._lock:
                if (place.id, str(model.backbone.device)) in self._held:
                    continue
            piece = cut(filled, row, place.start, place.end)
            if piece is None:
                break
            new.append((place, piece))
        self._hold(model, new)
        if self._write is not None:
            for place, piece in reversed(new):
                self._write(model, place, piece)

    def recall(self, model: Model, place: Place) -> Piece | None:
        """A piece that `keep` was given, for memories that make their own."""
        piece = self._known(model, place)
        if piece is not None:
            self._hold(model, [(place, piece)])
            self._touch(place.id)
        return piece

    def keep(self, model: Model, place: Place, piece: Piece) -> None:
        """Keep a piece whose id determines its content. It needs no text before it."""
        self._hold(model, [(place, piece)])
        if self._write is not None:
            self._write(model, place, piece)

    @property
    def _keeps(self) -> bool:
        return bool(self._max_bytes) or self._write is not None

    def _forgotten(self, model: Model, prompt: Prompt) -> bool:
        """Whether the prompt is longer than a sliding window, so that a prefill drops its first keys and values."""
        from memograft.model.kv import reach

        columns = reach(model.backbone)
        return self._keeps and columns is not None and 1 < columns < len(prompt.ids)

    def _made(self, model: Model, prompt: Prompt, place: Place, before: list[Piece]) -> Piece:
        from memograft.model.kv import chain
        from memograft.model.prefill import prefill_piece

        segment = chain(model.backbone, prompt.ids[: place.start], before) if before else None
        piece = prefill_piece(model.backbone, segment, prompt.ids[place.start : place.end])
        if self._write is not None:
            self._write(model, place, piece)
        return piece

    def _known(self, model: Model, place: Place) -> Piece | None:
        with self._lock:
            held = self._held.get((place.id, str(model.backbone.device)))
        return held if held is not None or self._read is None else self._read(model, place)

    def _hold(self, model: Model, pieces: list[tuple[Place, Piece]]) -> None:
        with self._lock:
            for place, piece in reversed(pieces):  # the first piece is removed last: later ones are useless without it
                key = (place.id, str(model.backbone.device))
                self._held[key] = piece
                self._held.move_to_end(key)
            total = sum(held.nbytes for held in self._held.values())
            while total > self._max_bytes:
                _, gone = self._held.popitem(last=False)
                total -= gone.nbytes


def _places(model: Model, prompt: Prompt) -> Iterator[Place]:
    """The pieces of a prompt's documents, first to last. The prompt's last token is never part of one."""
    digest = hashlib.sha256(json.dumps([model.fingerprint, str(model.backbone.model.dtype)]).encode())
    start = 0
    for (_, end), document in zip(prompt.spans, prompt.documents, strict=True):
        end = min(end, len(prompt.ids) - 1)
        if end <= start:
            continue
        digest.update(json.dumps(prompt.ids[start:end]).encode())
        yield Place(digest.hexdigest()[:32], start, end, document)
        start = end
