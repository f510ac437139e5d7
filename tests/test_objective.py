"""The loss of memorizing, with and without a shortlist, against its formula."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from families import VOCAB, build
from memograft.memory.fastmem.loss import Objective, exact_losses
from memograft.memory.fastmem.rows import TrainingRows
from memograft.model.adapter import Adapter, applied, stack
from memograft.model.backbone import Backbone

FAMILIES = ["llama", "gemma2", "phi", "granite", "cohere"]  # a cap, a bias of the head, a divisor, a factor


@cache
def backbone(family: str) -> Backbone:
    return Backbone.of(build(family).requires_grad_(False))


def rows(*lengths: int, seed: int = 0) -> TrainingRows:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    x, residual = (torch.randn(*shape, 32, generator=generator) for _ in range(2))
    mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    return TrainingRows(x, residual, torch.randint(0, VOCAB, shape, generator=generator), mask)


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


def formula(parts: Backbone, data: TrainingRows, now: Tensor, base: Tensor, beta: float) -> list[float]:
    """mean CE + beta mean KL(p_0 || p_phi), summed over single terms."""
    out = []
    for row in range(len(data.mask)):
        terms = []
        for t in range(int(data.mask[row].sum())):
            p0, logp = base[row, t].softmax(-1), now[row, t].log_softmax(-1)
            kl = (p0 * (p0.log() - logp)).sum()
            terms.append(float(-logp[data.targets[row, t]] + beta * kl))
        out.append(sum(terms) / len(terms))
    return out


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_loss_is_the_formula(family: str) -> None:
    parts, data = backbone(family), rows(5, 2)
    base = parts.logits(data.x, data.residual)
    objective = Objective(parts, data, 0.7, None)
    with applied(parts, change(parts, 2)):
        now = parts.logits(data.x, data.residual)
        losses, _ = objective.loss()
        ce, kl = objective.exact()
    assert losses.tolist() == pytest.approx(formula(parts, data, now, base, 0.7), rel=1e-5)
    assert kl.tolist() != pytest.approx([0, 0], abs=1e-3)
    expected = F.cross_entropy(now.transpose(1, 2), data.targets, reduction="none")
    torch.testing.assert_close(ce, expected, rtol=1e-5, atol=1e-5)
    both = [float(ce[n][data.mask[n]].mean() + 0.7 * kl[n]) for n in range(2)]
    assert losses.tolist() == pytest.approx(both, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_shortlist_is_a_distribution_over_candidates_and_a_bucket(family: str) -> None:
    """The bucket's mass is the base model's sum of exp(logit) over all other tokens."""
    parts, data, size = backbone(family), rows(5, 2), 20
    base = parts.logits(data.x, data.residual)
    objective = Objective(parts, data, 0.7, size)
    with applied(parts, change(parts, 2)):
        now = parts.logits(data.x, data.residual)
        losses, _ = objective.loss()
    for row, loss in enumerate(losses.tolist()):
        own = data.mask[row]
        must = set(data.targets[row][own].tolist())
        mass = base[row][own].softmax(-1).sum(0)
        free = [t for t in mass.argsort(descending=True).tolist() if t not in must]
        chosen = sorted(must) + free[: size - len(must)]
        others = sorted(set(range(VOCAB)) - set(chosen))
        rest = base[row][own][:, others].logsumexp(-1, keepdim=True)
        logits = torch.cat([now[row][own][:, chosen], rest], -1)
        logits_0 = torch.cat([base[row][own][:, chosen], rest], -1)
        places = torch.tensor([chosen.index(t) for t in data.targets[row][own].tolist()])
        ce = F.cross_entropy(logits, places)
        kl = F.kl_div(logits.log_softmax(-1), logits_0.log_softmax(-1), log_target=True, reduction="batchmean")
        assert loss == pytest.approx(float(ce + 0.7 * kl), rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_reported_losses_are_exact_whatever_the_shortlist(family: str) -> None:
    parts, data = backbone(family), rows(6, 3)
    full, short = (Objective(parts, data, 0.1, size) for size in (None, 8))
    torch.testing.assert_close(short.before, full.before, rtol=1e-5, atol=1e-5)
    with applied(parts, change(parts, 2)):
        for ours, theirs in zip(short.exact(), full.exact(), strict=True):
            torch.testing.assert_close(ours[..., :3], theirs[..., :3], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_shortlist_of_the_whole_vocabulary_is_the_full_loss() -> None:
    parts, data = backbone("llama"), rows(5)
    losses = []
    for size in (None, VOCAB, VOCAB + 1):
        objective = Objective(parts, data, 0.1, size)
        with applied(parts, change(parts, 1)):
            losses.append(objective.loss()[0])
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])


@pytest.mark.parametrize("shortlist", [None, 3, 20])
def test_rows_of_a_batch_do_not_see_each_other(shortlist: int | None) -> None:
    """Even if the tokens of another row alone exceed the shortlist."""
    parts, data = backbone("llama"), rows(4, 40, 1)
    together, deltas = Objective(parts, data, 0.5, shortlist), change(parts, 3)
    with torch.no_grad(), applied(parts, deltas):
        (losses, _), (ce, kl) = together.loss(), together.exact()
    for row in range(3):
        one = data.single(row)
        alone = Objective(parts, one, 0.5, shortlist)
        own = {name: (a[row : row + 1], b[row : row + 1]) for name, (a, b) in deltas.items()}
        with torch.no_grad(), applied(parts, own):
            assert float(losses[row]) == pytest.approx(float(alone.loss()[0]), rel=1e-4)
            torch.testing.assert_close(ce[row][data.mask[row]], alone.exact()[0][0], rtol=1e-4, atol=1e-4)
            assert float(kl[row]) == pytest.approx(float(alone.exact()[1]), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("shortlist", [None, 20])
@torch.no_grad()
def test_what_pads_a_row_counts_for_nothing(shortlist: int | None) -> None:
    parts, data = backbone("llama"), rows(4, 9)
    dirty = TrainingRows(data.x.clone(), data.residual.clone(), data.targets.clone(), data.mask)
    dirty.x[0, 4:], dirty.residual[0, 4:], dirty.targets[0, 4:] = torch.nan, torch.inf, 7
    clean, soiled = (Objective(parts, d, 0.5, shortlist) for d in (data, dirty))
    with applied(parts, change(parts, 2)):
        torch.testing.assert_close(soiled.loss()[0], clean.loss()[0])
        torch.testing.assert_close(soiled.exact()[1], clean.exact()[1])


@pytest.mark.parametrize("shortlist", [None, 20])
@torch.no_grad()
def test_a_row_that_is_not_a_number_leaves_its_neighbours_alone(shortlist: int | None) -> None:
    parts, data = backbone("llama"), rows(4, 9)
    data.x[0] = torch.nan
    objective = Objective(parts, data, 0.5, shortlist)
    own = Objective(parts, data.single(1), 0.5, shortlist)
    assert objective.loss()[0][0].isnan()
    assert float(objective.loss()[0][1]) == pytest.approx(float(own.loss()[0]), rel=1e-5)


def test_small_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, data = backbone("gemma2"), rows(7, 5)
    values: list[Any] = []
    for size in (1 << 26, VOCAB * 2 * 3):
        monkeypatch.setattr("memograft.memory.fastmem.loss._CHUNK", size)
        objective = Objective(parts, data, 0.5, 16)
        values.append((objective.before, objective.loss()[0], *objective.exact(), exact_losses(parts, data)))
        torch.testing.assert_close(values[-1][-1], objective.before)
    for one, other in zip(*values, strict=True):
        torch.testing.assert_close(one, other)
