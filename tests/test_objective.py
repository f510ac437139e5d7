"""The loss of memorizing, with and without a shortlist, against its formula."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from families import VOCAB, build
from memograft.memory.fastmem.loss import Objective
from memograft.memory.fastmem.rows import TrainingRows
from memograft.memory.fastmem.vocabulary import exact_losses
from memograft.model.adapter import Adapter, applied, stack
from memograft.model.backbone import Backbone
from reference import fastmem as reference

FAMILIES = ["llama", "gemma2", "phi", "granite", "cohere"]  # a cap, a bias of the head, a divisor, a factor


@cache
def backbone(family: str) -> Backbone:
    return Backbone.of(build(family).requires_grad_(False))


@pytest.fixture(params=[64, 3], ids=["one-block", "blocks"], autouse=True)
def shortest(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts are one block each, padded to the longest, or several short ones."""
    monkeypatch.setattr("memograft.memory.fastmem.rows._SHORTEST", request.param)


def rows(*lengths: int, seed: int = 0) -> TrainingRows:
    generator = torch.Generator().manual_seed(seed)
    x, residual = (torch.randn(sum(lengths), 32, generator=generator) for _ in range(2))
    return TrainingRows(x, residual, torch.randint(0, VOCAB, (sum(lengths),), generator=generator), lengths)


def logits(parts: Backbone, data: TrainingRows, deltas: dict[str, tuple[Tensor, Tensor]] | None = None) -> list[Tensor]:
    """(length, V) of each context, with its own change of the model."""
    found = []
    for n, own in enumerate(data.slices):
        one = {name: (a[n : n + 1], b[n : n + 1]) for name, (a, b) in (deltas or {}).items()}
        with applied(parts, one):
            found.append(parts.logits(data.x[own][None], data.residual[own][None])[0])
    return found


def changed(objective: Objective, deltas: dict[str, tuple[Tensor, Tensor]], data: TrainingRows, parts: Backbone) -> Any:
    """(loss, KL), (each row's cross-entropy, each context's KL) of an objective with these changes: of a step, and as
    reported."""
    spread = {n: (data.blocks.spread(a), data.blocks.spread(b)) for n, (a, b) in deltas.items()}
    with torch.no_grad(), applied(parts, spread):
        return objective.loss(), objective.measured(lambda _: nullcontext())


def change(parts: Backbone, count: int, size: float = 0.3) -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    adapters = []
    for _ in range(count):
        a, b = {}, {}
        for name, module in parts.projections.items():
            a[name] = torch.randn(3, module.in_features, generator=generator) * size
            b[name] = torch.randn(module.out_features, 3, generator=generator) * size
        adapters.append(Adapter(a, b))
    return stack(adapters, parts)


def formula(targets: Tensor, now: Tensor, base: Tensor, beta: float) -> float:
    """mean CE + beta mean KL(p_0 || p_phi) of one context, summed up term by term."""
    terms = []
    for t, target in enumerate(targets.tolist()):
        p0, logp = base[t].softmax(-1), now[t].log_softmax(-1)
        terms.append(float(-logp[target] + beta * (p0 * (p0.log() - logp)).sum()))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("held", [1 << 26, VOCAB * 2], ids=["held", "recomputed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_is_the_formula(family: str, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memograft.memory.fastmem.loss._HELD", held)
    parts, data, deltas = backbone(family), rows(5, 2), change(backbone(family), 2)
    with torch.no_grad():
        base, now = logits(parts, data), logits(parts, data, deltas)
    (losses, _), (ce, kl) = changed(Objective(parts, data, 0.7, None), deltas, data, parts)
    expected = [formula(data.targets[s], *pair, 0.7) for s, *pair in zip(data.slices, now, base, strict=True)]
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)
    assert kl.tolist() != pytest.approx([0, 0], abs=1e-3)
    torch.testing.assert_close(
        ce, F.cross_entropy(torch.cat(now), data.targets, reduction="none"), rtol=1e-5, atol=1e-5
    )
    both = [float(ce[own].mean() + 0.7 * k) for own, k in zip(data.slices, kl, strict=True)]
    assert losses.tolist() == pytest.approx(both, rel=1e-5)


def test_a_gradient_is_the_same_whether_logits_are_held_or_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, data = backbone("gemma2"), rows(5, 2)
    found = []
    for held in (1 << 26, VOCAB * 2):
        monkeypatch.setattr("memograft.memory.fastmem.loss._HELD", held)
        leaves = {n: (a.requires_grad_(), b.requires_grad_()) for n, (a, b) in change(parts, 2).items()}
        objective = Objective(parts, data, 0.7, None)
        spread = {n: (data.blocks.spread(a), data.blocks.spread(b)) for n, (a, b) in leaves.items()}
        with applied(parts, spread):
            loss = objective.loss()[0].sum()
        found.append(torch.autograd.grad(loss, [leaf for pair in leaves.values() for leaf in pair]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def shortlisted(
    parts: Backbone, data: TrainingRows, deltas: dict[str, tuple[Tensor, Tensor]], n: int, size: int
) -> tuple[list[int], Tensor, Tensor]:
    """Candidates of context n, and logits over them and the bucket (length, S + 1) of the base and the changed model.

    The bucket: the sum of exp(logit) of all others, moved as their mean under the base model moves.
    """
    own, base, now = data.slices[n], logits(parts, data)[n], logits(parts, data, deltas)[n]
    must = set(data.targets[own].tolist())
    mass = base.softmax(-1).sum(0)
    free = [t for t in mass.argsort(descending=True).tolist() if t not in must]
    chosen = sorted(must) + free[: size - len(must)]
    others = sorted(set(range(VOCAB)) - set(chosen))
    mean = mass[others] @ parts.head.weight[others] / mass[others].sum()  # type: ignore[index,operator]
    x, residual = data.x[own][None], data.residual[own][None]
    before = parts.hidden(x, residual)[0]
    with applied(parts, {name: (a[n : n + 1], b[n : n + 1]) for name, (a, b) in deltas.items()}):
        moved = (parts.hidden(x, residual)[0] - before) @ mean * parts.logit_scale
    assert float(moved.abs().max()) > 1e-3
    rest = base[:, others].logsumexp(-1, keepdim=True)
    return chosen, torch.cat([base[:, chosen], rest], -1), torch.cat([now[:, chosen], rest + moved[:, None]], -1)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_shortlist_is_a_distribution_over_candidates_and_a_bucket(family: str) -> None:
    parts, data, size = backbone(family), rows(5, 2), 20
    deltas = change(parts, 2)
    (losses, _), _ = changed(Objective(parts, data, 0.7, size), deltas, data, parts)
    for n, own in enumerate(data.slices):
        chosen, before, now = shortlisted(parts, data, deltas, n, size)
        ce = F.cross_entropy(now, torch.tensor([chosen.index(t) for t in data.targets[own].tolist()]))
        kl = F.kl_div(now.log_softmax(-1), before.log_softmax(-1), log_target=True, reduction="batchmean")
        assert float(losses[n]) == pytest.approx(float(ce + 0.7 * kl), rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_with_a_shortlist_the_reported_kl_is_the_estimate(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memograft.memory.fastmem.loss._DRAWN", 4)
    parts, data = backbone(family), replace(rows(30, 12), ends=(2, 0))  # an end is no text
    deltas = change(parts, 2)
    _, (_, kl) = changed(Objective(parts, data, 0.7, 40), deltas, data, parts)
    for n, length in enumerate((28, 12)):
        _, *short = shortlisted(parts, data, deltas, n, 40)
        whole = (logits(parts, data)[n], logits(parts, data, deltas)[n])
        pairs = [tuple(own[:length].double() for own in pair) for pair in (whole, short)]
        estimate, undrawn, exact = reference.estimated_kl(*pairs, draws=max(4, length // 4))
        assert float(kl[n]) == pytest.approx(estimate, rel=1e-5)
        assert abs(undrawn - exact) > 1e-3 * exact, "it would not matter which rows are drawn"


@torch.no_grad()
def test_raising_all_other_tokens_alike_is_seen_by_a_shortlist() -> None:
    """It misses less than a fifth of what a small change does to the loss; a bucket that does not move, a quarter."""
    parts, data = backbone("llama"), rows(9)
    errors = []
    for size in (0.03, 0.01):
        deltas = change(parts, 1, size)
        (full, _), _ = changed(Objective(parts, data, 0.1, None), deltas, data, parts)
        (short, _), _ = changed(Objective(parts, data, 0.1, 40), deltas, data, parts)
        start, _ = Objective(parts, data, 0.1, None).loss()
        errors.append(abs(float(full - short)) / abs(float(full - start)))
    assert errors[1] < 0.2


@pytest.mark.parametrize("family", FAMILIES)
def test_reported_losses_are_exact_whatever_the_shortlist(family: str) -> None:
    parts, data = backbone(family), rows(6, 3)
    full, short = (Objective(parts, data, 0.1, size) for size in (None, 8))
    torch.testing.assert_close(short.before, full.before, rtol=1e-5, atol=1e-5)
    ours, theirs = (changed(objective, change(parts, 2), data, parts)[1][0] for objective in (short, full))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_shortlist_of_the_whole_vocabulary_is_the_full_loss() -> None:
    parts, data = backbone("llama"), rows(5)
    losses = [
        changed(Objective(parts, data, 0.1, size), change(parts, 1), data, parts)[0][0]
        for size in (None, VOCAB, VOCAB + 1)
    ]
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])


@pytest.mark.parametrize("shortlist", [None, 3, 20])
def test_contexts_of_a_batch_do_not_see_each_other(shortlist: int | None) -> None:
    """Not even where a neighbour's own tokens alone are more than the shortlist."""
    parts, data = backbone("llama"), rows(4, 40, 1)
    deltas = change(parts, 3)
    (losses, _), (ce, kl) = changed(Objective(parts, data, 0.5, shortlist), deltas, data, parts)
    for n, own in enumerate(data.slices):
        one = data.single(n)
        single = {name: (a[n : n + 1], b[n : n + 1]) for name, (a, b) in deltas.items()}
        (loss, _), (alone, moved) = changed(Objective(parts, one, 0.5, shortlist), single, one, parts)
        assert float(losses[n]) == pytest.approx(float(loss), rel=1e-4)
        torch.testing.assert_close(ce[own], alone, rtol=1e-4, atol=1e-4)
        assert float(kl[n]) == pytest.approx(float(moved), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("shortlist", [None, 20])
@torch.no_grad()
def test_a_row_that_is_not_a_number_leaves_its_neighbours_alone(shortlist: int | None) -> None:
    parts, data = backbone("llama"), rows(4, 9)
    data.x[0] = torch.nan
    objective = Objective(parts, data, 0.5, shortlist)
    own = Objective(parts, data.single(1), 0.5, shortlist)
    assert objective.loss()[0][0].isnan()
    assert float(objective.loss()[0][1]) == pytest.approx(float(own.loss()[0]), rel=1e-5)


def test_small_pieces_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, data = backbone("gemma2"), rows(7, 5)
    values: list[Any] = []
    for product, few in ((1 << 26, 1 << 26), (VOCAB * 3, VOCAB * 2)):
        monkeypatch.setattr("memograft.memory.fastmem.vocabulary._PRODUCT", product)
        monkeypatch.setattr("memograft.memory.fastmem.vocabulary._PASS", few)
        objective = Objective(parts, data, 0.5, 16)
        (loss, _), reported = changed(objective, change(parts, 2), data, parts)
        values.append((objective.before, loss, *reported, exact_losses(parts, data)))
        torch.testing.assert_close(values[-1][-1], objective.before)
    for one, other in zip(*values, strict=True):
        torch.testing.assert_close(one, other)


def test_blocks_hold_every_row_once() -> None:
    data = rows(7, 3, 12)
    blocks = data.blocks
    assert blocks.rows[blocks.real].tolist() == list(range(22))
    for block, context in enumerate(range(3) if blocks.context is None else blocks.context.tolist()):
        own = data.slices[context]
        assert all(own.start <= row < own.stop for row in blocks.rows[block].tolist())
