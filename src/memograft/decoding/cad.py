"""Context-aware decoding: contrast the logits with those of the prompt without documents (arXiv 2305.14739).

    l = (1 + alpha) * l(documents, question) - alpha * l_0(question)                        (equation 3 of the paper)
    alpha = JSD(p(documents, question), p_0(question)) in nats, for each token     ("adaptive": AdaCAD, 2409.07394)

l are the row's logits after its memory and rules. l_0 are the logits of the same model for the same conversation
without documents, followed by the answer so far. They have the memory's weights and rules too, and the prefix of a Mac,
so their effects that do not depend on the documents in the prompt cancel out. They do not have what stands for
documents: the keys and values of Kept and Compacted, and all gists of Gist. A datastore acts on the contrasted logits.
That conversation is another row of the batch (an echo, see `loop.py`), so the weights are read once for both.

Ours: with a memory that judges documents (FastMem with `relevance`), CAD is left out if none is about the question: it
would amplify the effect of documents that do not have the answer. `FastMem(cad_relevance=)` makes this stricter. And
with `agreed`, a token is not contrasted on which both prompts agree, so that what the model knows is not avoided.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from memograft.decoding.contrast import Alpha, check_alpha, contrasted
from memograft.decoding.dola import Dola
from memograft.errors import SettingsError

__all__ = ["Cad", "contrasts"]


@dataclass(frozen=True)
class Cad:
    """A member of a request's `processors`. It acts after the memory and before all other processors; no memory is
    needed. With FastMem, it is left out if no document is about the question (see `FastMem.relevance`).

    Attributes:
        alpha: strength (paper: 0.5 for questions); 0 changes nothing. "adaptive": more where documents change more, and
            less where they agree with what the model knows.
        agreed: a token is not contrasted if it is the likeliest with and without the documents, and has at least this
            probability without them. None: all tokens are contrasted (paper). Ours.

    Raises:
        SettingsError: alpha is negative or something else, or `agreed` is no probability.

    Example:
        >>> from memograft import Engine, FastMem
        >>> engine = Engine.from_pretrained("tiny")
        >>> page = "The capital of Australia is Lisbon."
        >>> engine.answer("What is the capital of Australia?", [page], memory=FastMem(), processors=[Cad(0.5)]).text
        'The capital of Australia is Lisbon.'
    """

    alpha: Alpha = 0.5
    agreed: float | None = None

    def __post_init__(self) -> None:
        check_alpha("alpha", self.alpha)
        least: object = self.agreed
        if least is not None and (isinstance(least, bool) or not isinstance(least, int | float) or not 0 <= least <= 1):
            raise SettingsError(f"`agreed` must be a probability from 0 to 1, or None for no token, got {least!r}")

    def contrasted(self, logits: Tensor, bare: Tensor) -> Tensor:
        """(V,) logits, and those without documents (V,) -> (V,)."""
        found = contrasted(logits, bare, self.alpha)
        if self.agreed is None:
            return found
        chance, token = bare.softmax(-1).max(-1)
        return torch.where((logits.argmax() == token) & (chance >= self.agreed), logits, found)


def contrasts(cad: Alpha | None, dola: Literal["low", "high"] | list[int] | tuple[int, ...] | None) -> list[Cad | Dola]:
    """The members of a request's `processors` from the options of commands, servers and frameworks; None is none.

    Raises:
        SettingsError: as `Cad` and `Dola` raise it.
    """
    made: list[Cad | Dola] = [] if cad is None else [Cad(cad)]
    if dola is not None:
        made.append(Dola(tuple(dola) if isinstance(dola, list) else dola))
    return made
