"""Map numbers to ten shades."""

from __future__ import annotations

from bisect import bisect_right

__all__ = ["LEVELS", "SHARES", "level", "share_level"]

LEVELS = (0.05, 0.25, 0.5, 1.0, 2.0, 3.0, 4.5, 6.0, 8.0)  # nats; limits between the ten shades
SHARES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8)  # the same for probabilities


def level(loss: float) -> int:
    """Shade of a loss, 0 (expected) to 9 (more than 8 nats); NaN gets the highest.

    Example:
        >>> level(0.01), level(0.7), level(12.0)
        (0, 3, 9)
    """
    return len(LEVELS) if loss != loss else bisect_right(LEVELS, loss)


def share_level(probability: float) -> int:
    """Shade of a probability that came from a datastore, 0 (almost none) to 9.

    Example:
        >>> share_level(0.0), share_level(0.25), share_level(1.0)
        (0, 4, 9)
    """
    return bisect_right(SHARES, probability)
