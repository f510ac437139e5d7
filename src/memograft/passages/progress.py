"""The progress bar of long work: tqdm's on a terminal, else one that shows nothing.

tqdm takes a lock of the whole process even for a bar that it is told not to show, in Python, so that an interrupt can
leave it held and every other thread waiting. Work without a bar does not take it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn, Self

if TYPE_CHECKING:
    from tqdm import tqdm


class Silent:
    """A bar that shows nothing."""

    def update(self, n: int) -> None:
        """So many are done."""

    def set_postfix_str(self, text: str) -> None:
        """What is being done."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def progress_bar(total: int | None, what: str, unit: str, show: bool) -> tqdm[NoReturn] | Silent:
    """Return a bar for `with` that is shown on a terminal if at all."""
    if not show or not sys.stderr.isatty():
        return Silent()
    from tqdm import tqdm

    return tqdm(total=total, desc=what, unit=unit)
