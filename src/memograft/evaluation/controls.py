"""`Restricted`: a control method that only allows tokens of the documents, as a logits processor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import LogitsProcessor

if TYPE_CHECKING:
    from memograft import Engine
    from memograft.evaluation.items import Item

__all__ = ["Restricted"]


class Restricted(LogitsProcessor):  # type: ignore[misc]
    """Plain decoding, restricted to tokens of the documents, the question and the item's frame.

    A fair control for memorizing: it has no memory, and can only use words that are in the documents.
    """

    supports_continuous_batching = False

    def __init__(self, engine: Engine, item: Item) -> None:
        # Also with a leading space, as a word is tokenized inside a sentence.
        said = (*(d.text for d in item.documents), item.question, *item.frame.splitlines(), ".")
        texts = [t for text in said for t in (text, " " + text)]
        allowed = {i for text in texts for i in engine.tokenizer(text, add_special_tokens=False)["input_ids"]}
        ends = engine.model.generation_config.eos_token_id
        allowed |= {*(ends if isinstance(ends, list) else [ends]), engine.tokenizer.eos_token_id} - {None}
        self._allowed = torch.tensor(sorted(allowed))

    def __call__(self, _ids: Tensor, scores: Tensor) -> Tensor:
        """(1, T), (1, V) -> (1, V)."""
        kept = torch.full_like(scores, -torch.inf)
        kept[:, self._allowed] = scores[:, self._allowed]
        return kept
