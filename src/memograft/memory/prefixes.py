"""Keys and values of documents that prompts began with, for the next prompt that begins with the same ones.

No memory changes them, so they are reused under every memory and under none. A prompt that shares only the first of its
documents with one of before gets the keys and values of these. Held in memory, where the model's device has them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from memograft.storage.locks import made_anew_in_forks

if TYPE_CHECKING:
    from memograft.memory.base import Model
    from memograft.model.kv import Prefill, Segment
    from memograft.prompt.builder import Prompt

__all__ = ["Prefixes"]

_Key = tuple[str, tuple[int, ...]]  # the model's fingerprint, tokens


class Prefixes:
    """Segments by the tokens they are of, at most `max_bytes` of them; those not used for longest go first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        made_anew_in_forks(self._make_lock)
        self._held: OrderedDict[_Key, Segment] = OrderedDict()
        self._ends: dict[_Key, _Key] = {}  # what ends with a document, and the segment that begins with it

    def _make_lock(self) -> None:
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of what is held."""
        with self._lock:
            return sum(segment.nbytes for segment in self._held.values())

    def get(self, model: Model, prompt: Prompt) -> Segment | None:
        """The longest segment that ends with a document and that the prompt begins with."""
        from memograft.model.kv import head

        for end in sorted(_ends(prompt), reverse=True):
            with self._lock:
                key = self._ends.get((model.fingerprint, prompt.ids[:end]))
                segment = self._held.get(key) if key is not None else None
                if key is not None and segment is not None:
                    self._held.move_to_end(key)
            if segment is not None:
                return head(model.backbone, segment, end)
        return None

    def put(self, model: Model, prompt: Prompt, filled: Prefill, row: int) -> None:
        """Keep what a row of a prefill has of its prompt up to the end of the last document, where it can be cut."""
        from memograft.model.kv import cut

        ends = _ends(prompt)
        key = (model.fingerprint, prompt.ids[: max(ends, default=0)])
        with self._lock:
            known = key in self._ends
        segment = cut(model.backbone, filled, row, len(key[1])) if key[1] and not known else None
        if segment is None or segment.nbytes > self._max_bytes:
            return
        with self._lock:
            self._held[key] = segment
            self._ends |= {(model.fingerprint, prompt.ids[:end]): key for end in ends}
            total = sum(held.nbytes for held in self._held.values())
            while total > self._max_bytes:
                gone, old = self._held.popitem(last=False)
                self._ends = {end: held for end, held in self._ends.items() if held != gone}
                total -= old.nbytes


def _ends(prompt: Prompt) -> set[int]:
    """Where documents end; the last token of a prompt is decoding's."""
    return {min(end, len(prompt.ids) - 1) for start, end in prompt.spans if end > start}
