"""Drafts of an answer from its own prompt, which one pass verifies (prompt lookup decoding, Saxena 2023).

    prompt   ... the tower was built in 1889 by Gustave Eiffel ...
    answer   It was built in | 1889 by Gustave Eiffel          draft: what follows the same last tokens in the prompt

An answer that cites a document is mostly found in the prompt. A pass over a few tokens takes hardly longer than a pass
over one, because both read all weights, and tokens that the model would not have chosen are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Lookup"]

_GRAM = 2  # tokens that must agree; with one, most drafts are wrong
_FIRST = 6  # tokens of the first draft
_MOST_TOKENS = 16  # of all rows in a pass: beyond, a pass takes noticeably longer on a CPU


class Lookup:
    """The drafts for one row.

    Args:
        prompt: its tokens.
        most: maximum length of a draft.
    """

    def __init__(self, prompt: Sequence[int], most: int) -> None:
        self._prompt, self._most, self._length = list(prompt), most, min(_FIRST, most)
        self._after = {tuple(prompt[n - _GRAM : n]): n for n in range(len(prompt) - 1, _GRAM - 1, -1)}  # the first one
        self._at: int | None = None  # where the latest draft was taken from
        self._missed = False

    def draft(self, tokens: Sequence[int], rows: int, room: int) -> list[int]:
        """The tokens that may follow the answer so far; none if there is no hint, or if the last one was wrong.

        Args:
            tokens: the answer so far.
            rows: number of rows in the pass.
            room: how many tokens may follow.
        """
        if self._missed:
            self._missed = False
            return []
        length = min(self._length, room, _MOST_TOKENS // rows - 1)
        last = tuple([*self._prompt[-_GRAM:], *tokens][-_GRAM:])
        if self._at is None or self._prompt[self._at - 1] != last[-1]:
            self._at = self._after.get(last)
        return [] if self._at is None or length < 1 else self._prompt[self._at : self._at + length]

    def verified(self, drafted: int, right: int) -> None:
        """Learn from a draft of which the first `right` tokens were chosen."""
        assert self._at is not None
        self._missed = not right
        if right == drafted:
            self._at, self._length = self._at + right + 1, min(2 * self._length, self._most)
        else:
            self._at, self._length = None, max(2, self._length // 2)
