"""A tap: reads a request's next-token distribution after memory, rules and processors, before sampling.

If it is given tokens, it forces the row to generate them and records their log-probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memograft.errors import PromptTooLongError

__all__ = ["Tap"]


class Tap:
    """The last of a row's processors.

    Args:
        forced: tokens that the row must generate; if empty, only the first distribution is read.

    Attributes:
        first: (V,) float32 log-probabilities of the first new token; None until they are read.
    """

    def __init__(self, forced: Sequence[int] = ()) -> None:
        self.first: Tensor | None = None
        self._forced = tuple(forced)
        self._chances: list[Tensor] = []
        self._best: list[Tensor] = []

    @property
    def chances(self) -> list[float]:
        """Log-probability of each forced token."""
        return [float(chance) for chance in self._chances]

    @property
    def greedy(self) -> bool:
        """Whether each forced token was the most likely one."""
        return all(bool(best) for best in self._best)

    def length(self, room: int) -> int:
        """Number of tokens that the row must generate; `room` is how many fit.

        Raises:
            PromptTooLongError: the forced tokens do not fit.
        """
        wanted = max(1, len(self._forced))
        if wanted > room:
            raise PromptTooLongError(
                f"an option has {wanted} tokens, and {room} fit behind the prompt; shorten the option or the prompt",
                tokens=wanted,
                limit=room,
            )
        return wanted

    def __call__(self, _ids: Tensor, scores: Tensor) -> Tensor:
        """(1, T), (1, V) -> (1, V)."""
        logp, step = scores[0].float().log_softmax(-1), len(self._chances)
        if self.first is None:
            self.first = logp.cpu()
        if not self._forced:
            return scores
        token = self._forced[min(step, len(self._forced) - 1)]
        self._chances.append(logp[token])
        self._best.append(logp.argmax() == token)
        return torch.full_like(scores, -torch.inf).index_fill_(1, torch.tensor([token], device=scores.device), 0.0)
