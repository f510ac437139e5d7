"""Progress bars: tqdm's on a terminal, otherwise a silent one.

tqdm takes a process-wide lock even for a disabled bar. The lock is implemented in Python, so an interrupt can leave it
locked, and other threads would wait for ever. Work without a bar must not take it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn, Self

if TYPE_CHECKING:
    from tqdm import tqdm


class Silent:
    """A progress bar that shows nothing."""

    def update(self, n: int) -> None:
        """Count `n` more items."""

    def set_postfix_str(self, text: str) -> None:
        """Set the description."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def progress_bar(total: int | None, what: str, unit: str, show: bool) -> tqdm[NoReturn] | Silent:
    """Return a context manager: a bar if `show` and on a terminal, else a silent one."""
    if not show or not sys.stderr.isatty():
        return Silent()
    from tqdm import tqdm

    return tqdm(total=total, desc=what, unit=unit)
