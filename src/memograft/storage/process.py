"""What belongs to the process that made it."""

from __future__ import annotations

from typing import NoReturn

__all__ = ["OfOneProcess"]


class OfOneProcess:
    """Refuses to be pickled or copied: it holds a thread, locks or open files. `instead` is what to do, in words."""

    def __init_subclass__(cls, instead: str = "") -> None:
        cls._instead = instead or cls._instead

    _instead = "make one in each process"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} cannot be pickled or copied, it is this process's own; {self._instead}")
