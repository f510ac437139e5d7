"""Times and multiplications of calls that take turns, and their ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

__all__ = ["Line", "Times", "flops", "of_ratio", "spent", "turns"]


@dataclass(frozen=True)
class Times:
    """CPU seconds of all threads, which other programs on the machine hardly change, and seconds of the clock."""

    cpu: float
    wall: float

    def __sub__(self, other: Times) -> Times:
        return Times(self.cpu - other.cpu, self.wall - other.wall)


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        name: what is compared.
        median: over the repetitions, as are the least and the largest.
        target: the value that is wanted, or None.
        at_least: whether the target is a lower bound instead of an upper one.
        wall: the median by the clock, or None.
        flops: the same ratio of floating-point operations in matrix products, or None.
        repetitions: how often it was measured.
    """

    name: str
    median: float
    least: float
    largest: float
    target: float | None = None
    at_least: bool = False
    wall: float | None = None
    flops: float | None = None
    repetitions: int = 1

    @property
    def met(self) -> bool | None:
        """Whether the target is met."""
        if self.target is None:
            return None
        return self.median >= self.target if self.at_least else self.median <= self.target


def spent(call: Callable[[], object]) -> Times:
    """The times of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return Times(time.process_time() - cpu, time.perf_counter() - wall)


def flops(call: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products of a call in this thread; attention is not counted on a CPU."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def turns(parts: Mapping[str, Callable[[], object]], repeat: int, title: str) -> dict[str, list[Times]]:
    """Run all parts in their order, `repeat` times after a first time that warms up."""
    times: dict[str, list[Times]] = {name: [] for name in parts}
    for turn in tqdm(range(repeat + 1), desc=title):
        for name, part in parts.items():
            own = spent(part)
            if turn:
                times[name].append(own)
    return times


def of_ratio(name: str, one: Sequence[Times], other: Sequence[Times], **more: Any) -> Line:
    """The line of a ratio of times within the same repetition."""
    cpu = [a.cpu / b.cpu for a, b in zip(one, other, strict=True)]
    wall = [a.wall / b.wall for a, b in zip(one, other, strict=True)]
    return Line(
        name,
        *(round(f(cpu), 3) for f in (statistics.median, min, max)),
        wall=round(statistics.median(wall), 3),
        repetitions=len(cpu),
        **more,
    )
