"""The rival that MAC's paper compares retention with: the model is fine-tuned on each document as it comes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from memograft import Document, Engine
from memograft.model.loading import load

__all__ = ["fine_tuned"]

BATCH = 8
IGNORED = -100


def fine_tuned(name: str, documents: Sequence[Document], learning_rate: float) -> Engine:
    """A model all of whose weights were trained on documents, each of them once, in their order.

    All tokens count alike ("uniform" in the paper). AdamW without weight decay; the learning rate does not change,
    because it is not known how many documents will come.
    """
    model, tokenizer = load(name)
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0)
    for start in range(0, len(documents), BATCH):
        texts = [document.text for document in documents[start : start + BATCH]]
        rows = [torch.tensor([*tokenizer(text).input_ids, tokenizer.eos_token_id]) for text in texts]
        ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.eos_token_id)
        goal = pad_sequence(rows, batch_first=True, padding_value=IGNORED)
        logits = model(input_ids=ids, attention_mask=(goal != IGNORED).long()).logits[:, :-1].float()
        cross_entropy(logits.flatten(0, 1), goal[:, 1:].flatten(), ignore_index=IGNORED).backward()
        optimiser.step()
        optimiser.zero_grad()
    return Engine(model, tokenizer)
