"""Documents and questions that are encoded once, from which MAC's networks learn without passes of the model. Ours.

Trained end to end, a step encodes each document of its bank, so a bank is small, and one of thousands in use is another
thing. But as long as LoRA and learned tokens are those of a gist, their states do not change. Then a step needs only
the networks: they are to give a question the gist of its document, out of a bank of any size.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memograft.memory.base import Model
from memograft.memory.gist.compress import GistWeights, compressed
from memograft.memory.gist.data import Batch
from memograft.memory.mac.loss import distances, missed
from memograft.memory.mac.networks import Prefix
from memograft.memory.mac.weights import MacWeights

__all__ = ["Encoded", "encode", "loss_of_encoded"]


@dataclass(frozen=True)
class Encoded:
    """What the model says of K documents and Q questions, in its dtype.

    Attributes:
        documents: states (K, T, D) at the learned tokens behind documents, before the head.
        gists: their keys and values (K, T, size), in the order of `Prefix`.
        questions: states (Q, T, D) behind questions.
        own: the documents of each question.
        asked: the questions of each group of documents.
        spread: of the gists, see `Prefix.spread`.
        tokens: that were read.
    """

    documents: Tensor
    gists: Tensor
    questions: Tensor
    own: tuple[tuple[int, ...], ...]
    asked: tuple[tuple[int, ...], ...]
    spread: Tensor
    tokens: int

    def drawn(self, rng: random.Random, groups: int, questions: int, others: int) -> tuple[list[int], list[int]]:
        """Questions about `groups` groups of documents, at most so many of each, and a bank: their documents, and
        others.
        """
        chosen = rng.sample(self.asked, min(groups, len(self.asked)))
        rows = [n for own in chosen for n in rng.sample(own, min(questions, len(own)))]
        bank = list(dict.fromkeys(n for row in rows for n in self.own[row]))
        taken = set(bank)
        more = rng.sample(range(len(self.documents)), min(len(self.documents), others + len(bank)))
        return rows, bank + [n for n in more if n not in taken][:others]


@torch.no_grad()
def encode(model: Model, weights: MacWeights, teacher: GistWeights, batches: Iterable[Batch]) -> Encoded:
    """Encode batches once; memory is that of their gists."""
    backbone, form = model.backbone, weights.form
    assert isinstance(form, Prefix)
    documents, gists, questions = list[Tensor](), list[Tensor](), list[Tensor]()
    own, asked = list[tuple[int, ...]](), dict[tuple[int, ...], list[int]]()
    count = tokens = 0
    for batch in batches:
        made = compressed(backbone, teacher, batch.documents, model.pad_id)
        same = weights.on_documents == teacher.on_documents
        learned = weights.networks.document_tokens
        documents.append(
            made.x if same else weights.last_states(backbone, learned, batch.documents, model.pad_id).to(made.x)
        )
        gists.append(form.flat(made.layers, backbone.device))
        texts = [row.prompt[-weights.window :] for row in batch.asked]
        questions.append(weights.questions(backbone, texts, model.pad_id).to(made.x))
        for row in batch.asked:
            places = tuple(count + n for n in row.gists)
            asked.setdefault(places, []).append(len(own))
            own.append(places)
        count += len(batch.documents)
        tokens += sum(len(text) + weights.tokens for text in (*batch.documents, *texts))
    every = torch.cat(gists)
    return Encoded(
        torch.cat(documents),
        every,
        torch.cat(questions),
        tuple(own),
        tuple(map(tuple, asked.values())),
        form.spread(every[:_SPREAD]),
        tokens,
    )


_SPREAD = 512  # gists whose variance is taken


def loss_of_encoded(
    weights: MacWeights,
    encoded: Encoded,
    rows: Sequence[int],
    bank: Sequence[int],
    alone: Sequence[bool],
    *,
    imitate: float,
    point: float,
) -> Tensor:
    """`imitate` and `point` of `loss.loss_of`, the mean over questions.

    Questions that are `alone` see their own documents only. With a model in bfloat16, products are in bfloat16 too.
    """
    networks, states = weights.networks, encoded.questions[list(rows)].float()
    device, dtype = states.device, encoded.documents.dtype
    own, places = [encoded.own[row] for row in rows], {n: place for place, n in enumerate(bank)}
    most = max(map(len, own))
    where = torch.tensor([[places[n] for n in of] + [0] * (most - len(of)) for of in own], device=device)
    used = torch.tensor([[n < len(of) for n in range(most)] for of in own], device=device)
    apart = torch.tensor(alone, device=device)
    together = ~apart
    shares: list[Tensor] | None = [] if point and not all(alone) else None
    with torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16):
        made = networks.amortise(encoded.documents[list(bank)].float())
        found = torch.zeros_like(states)
        if not all(alone):
            found = found.index_put((together,), networks.aggregate(states[together], made, None, shares).float())
        if any(alone):
            by_itself = networks.aggregate(states[apart], made[where[apart]], used[apart])
            found = found.index_put((apart,), by_itself.float())
        loss = imitate * distances(weights, found, encoded.gists, own, encoded.spread).mean()
    if shares:  # a question alone points to its own documents anyway
        mine = torch.zeros(len(rows), len(bank), device=device).scatter_add_(1, where, used.float())
        loss = loss + point * missed(shares[0].float(), mine[together]).sum() / len(rows)
    return loss
