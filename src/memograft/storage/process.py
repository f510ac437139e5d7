"""Objects that must not leave their process."""

from __future__ import annotations

from typing import NoReturn

__all__ = ["OfOneProcess"]


class OfOneProcess:
    """Refuses pickling and copying, for objects with a thread, locks or open files. `instead` is the remedy."""

    def __init_subclass__(cls, instead: str = "") -> None:
        cls._instead = instead or cls._instead

    _instead = "make one in each process"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} cannot be pickled or copied, it is this process's own; {self._instead}")
