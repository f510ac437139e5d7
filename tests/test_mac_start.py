"""A MAC that begins with a gist gives the gist's keys and values as well as a linear map can."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from gists import random_gist
from memograft.memory.gist.compress import Opening, compressed
from memograft.memory.gist.data import Asked, Batch
from memograft.memory.mac.loss import Drawn, bank_of, found_in, loss_of
from memograft.memory.mac.start import fit_to_gist
from reference.mac import aggregated
from test_mac_reference import made, model_of

W = 64


def batches(count: int, seed: int) -> list[Batch]:
    """Of eight documents each, with a question about every one that names some of its tokens."""
    rng, found = random.Random(seed), []
    for _ in range(count):
        documents = tuple((1, 4, *rng.choices(range(5, 90), k=rng.randint(6, 16))) for _ in range(8))
        prompts = [(1, 4, *rng.sample(ids[2:], 4), 2, 5) for ids in documents]
        rows = tuple(Asked(ids, ids, (60, 61, 2), (n,)) for n, ids in enumerate(prompts))
        found.append(Batch(documents, rows, Opening((1, 4), 2)))
    return found


def begun(family: str, **options: Any) -> tuple[Any, Any, Any]:
    """The model, a MAC with the LoRA and the tokens of a gist, and the gist."""
    backbone, weights = made(family, on_documents=False, window=W, **{"heads": 1, **options})
    gist = random_gist(backbone, window=W)
    with torch.no_grad():
        for own in (weights.networks.document_tokens, weights.networks.question_tokens):
            own.copy_(gist.embeddings)
    return backbone, replace(weights, adapter=gist.adapter), gist


def keys_and_values(backbone: Any, gist: Any, documents: Any) -> Tensor:
    """(N, T, size) in the order of a modulation."""
    rows = []
    for ids in documents:
        layers = compressed(backbone, gist, [ids], 0).layers
        rows.append(torch.cat([t[0].transpose(0, 1).reshape(t.shape[2], -1) for pair in layers for t in pair], 1))
    return torch.stack(rows)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
@torch.no_grad()
def test_modulations_are_the_ridge_regression_of_the_gists(family: str) -> None:
    backbone, weights, gist = begun(family)
    some, networks = batches(4, 0), weights.networks
    fit_to_gist(model_of(backbone), weights, gist, some)

    states = [weights.last_states(backbone, networks.document_tokens, [ids], 0)[0] for b in some for ids in b.documents]
    rows = [row for batch in some for row in batch.asked]
    asked = [weights.last_states(backbone, networks.question_tokens, [row.prompt], 0)[0] for row in rows]
    every = torch.stack(states)
    plain = (every - every.mean((0, 1))) / every.std((0, 1), correction=0)
    assert float((networks.amortise(every) - plain).square().mean()) < 0.15, "GELU is nearly linear"

    x = torch.stack([aggregated(networks, q, [networks.amortise(d)]) for q, d in zip(asked, states, strict=True)])
    y = torch.cat([keys_and_values(backbone, gist, batch.documents) for batch in some])
    apart, wanted = (x - x.mean(0)).flatten(0, 1).double(), (y - y.mean(0)).flatten(0, 1).double()
    alpha = 0.1 * float(apart.square().sum(0).mean())
    ridge = Ridge(alpha=alpha, fit_intercept=False).fit(apart.numpy(), wanted.numpy())
    expected = torch.from_numpy(ridge.predict(apart.numpy())).view_as(y).float() + y.mean(0)
    torch.testing.assert_close(networks.modulate(x), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("heads", [1, 4])
@torch.no_grad()
def test_questions_attend_to_states_that_are_likelier_behind_them(heads: int) -> None:
    """Cxx^-1 Cxy is the ridge regression of y on x, here with scikit-learn."""
    backbone, weights, gist = begun("llama", heads=heads)
    some, networks = batches(4, 0), weights.networks
    fit_to_gist(model_of(backbone), weights, gist, some)
    block = networks.blocks[-1]

    def apart(tokens: Tensor, head: Any, norm: Any, texts: Any) -> Tensor:
        states = torch.stack([norm(head(weights.last_states(backbone, tokens, [ids], 0)[0])) for ids in texts])
        return (states - states.mean(0)).flatten(0, 1).double()

    asked = [row.prompt for batch in some for row in batch.asked]
    x = apart(networks.question_tokens, networks.question_head, block.asking, asked)
    y = apart(networks.document_tokens, networks.document_head, block.bank, [d for b in some for d in b.documents])
    alpha, shared = (0.5 * float(t.square().sum(0).mean()) for t in (x, y))
    regression = Ridge(alpha=alpha, fit_intercept=False).fit(x.numpy(), y.numpy()).coef_
    covariance = (y.T @ y + shared * torch.eye(y.shape[1])) / len(y)
    matching = torch.from_numpy(regression).T.double() @ torch.linalg.inv(covariance)
    for one, other in ((x[:5], y[7:10]), (x[20:23], y[:4])):
        asking, bank = (t.float() @ w.T for t, w in zip((one, other), _maps(block), strict=True))
        parts = [
            a @ b.T * b.shape[1] ** -0.5 for a, b in zip(asking.chunk(heads, 1), bank.chunk(heads, 1), strict=True)
        ]
        torch.testing.assert_close(sum(parts).double(), one @ matching @ other.T, rtol=1e-3, atol=1e-3)  # type: ignore[union-attr]


def _maps(block: Any) -> tuple[Tensor, Tensor]:
    """Those of queries and keys."""
    return block.query.weight, block.key_value.weight.chunk(2)[0]


@torch.no_grad()
def test_they_find_their_documents_among_others() -> None:
    """Of eight, which no question of the fit was about."""
    backbone, weights, gist = begun("llama")
    model = model_of(backbone)
    fit_to_gist(model, weights, gist, batches(16, 0))
    (other,) = batches(1, 1)
    shares = list[Tensor]()
    found_in(model, weights, other.asked, bank_of(model, weights, other.documents, [False] * 8), None, shares)
    assert float(shares[0].diagonal().mean()) > 0.17, "by chance .125"


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
@torch.no_grad()
def test_they_tell_other_documents_apart(family: str) -> None:
    """The mean of all gists is 1 away from each, in units of their variance."""
    backbone, weights, gist = begun(family)
    model = model_of(backbone)
    fit_to_gist(model, weights, gist, batches(16, 0))
    (other,) = batches(1, 1)
    bank = bank_of(model, weights, other.documents, [False] * 8)
    alone = Drawn([True] * len(other.asked))
    plain, imitated = (
        loss_of(model, weights, other, bank, alone, imitate=weight, teacher=gist) for weight in (0.0, 1.0)
    )
    apart = float(imitated - plain) / sum(len(row.answer) for row in other.asked)
    assert apart < 0.9, f"{apart:.3f} of the variance of gists is left"


@torch.no_grad()
def test_one_document_is_given_as_its_gist() -> None:
    backbone, weights, gist = begun("llama")
    (batch,) = batches(1, 0)
    one = replace(batch, documents=batch.documents[:1], asked=batch.asked[:1])
    model = model_of(backbone)
    fit_to_gist(model, weights, gist, [one])
    found = found_in(model, weights, one.asked, bank_of(model, weights, one.documents, [False]))
    expected = keys_and_values(backbone, gist, one.documents)
    torch.testing.assert_close(weights.networks.modulate(found), expected, rtol=1e-4, atol=1e-4)
