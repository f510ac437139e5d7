"""Training in passes over few rows, and frozen outputs that are computed once for an input that is given many times."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from families import VOCAB, build
from memograft import FastMem
from memograft.memory.fastmem.rows import TrainingRows
from memograft.memory.fastmem.train import memorize
from memograft.model.adapter import Adapter, applied, stack
from memograft.model.backbone import Backbone, linear_shape
from memograft.model.repeated import Repeated

ROWS, WIDTH, RANK = 24, 32, 4


def parts_of(family: str) -> Backbone:
    return Backbone.of(build(family).requires_grad_(False))


def stacked(parts: Backbone, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    a, b = {}, {}
    for name, module in parts.projections.items():
        inside, out = linear_shape(module) or (0, 0)
        a[name], b[name] = (torch.randn(*s, generator=generator) * 0.3 for s in ((RANK, inside), (out, RANK)))
    return stack([Adapter(a, b)], parts)


def rows(*lengths: int) -> TrainingRows:
    generator = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(sum(lengths), WIDTH, generator=generator) for _ in range(2))
    return TrainingRows(x, residual, torch.randint(0, VOCAB, (sum(lengths),), generator=generator), lengths)


def flops(parts: Backbone, x: Tensor, adapters: dict[str, tuple[Tensor, Tensor]], repeated: Repeated | None) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad(), applied(parts, adapters, repeated=repeated):
        parts.run_ffn(x)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi", "opt", "gemma2", "qwen2_moe"])
def test_outputs_and_gradients_are_the_same_at_every_pass(family: str) -> None:
    parts, x = parts_of(family), torch.randn(1, ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
    repeated, other = Repeated(parts, [x]), x + 1
    for seed in range(3):
        adapters = {n: (a.requires_grad_(), b.requires_grad_()) for n, (a, b) in stacked(parts, seed).items()}
        leaves = [leaf for pair in adapters.values() for leaf in pair]
        for given in (x, other, x):
            found = []
            for kept in (None, repeated):
                with applied(parts, adapters, repeated=kept):
                    y = parts.run_ffn(given)
                found.append((y.detach(), *torch.autograd.grad(y.square().sum(), leaves)))
            for one, same in zip(*found, strict=True):
                torch.testing.assert_close(one, same)
    assert parts.run_ffn(x).shape == x.shape, "without an adapter, the maps run as usual"


@pytest.mark.parametrize(("family", "spared"), [("llama", 2), ("gpt2", 1), ("phi", 1)])
def test_maps_of_the_repeated_input_are_multiplied_once(family: str, spared: int) -> None:
    parts, x = parts_of(family), torch.randn(1, ROWS, WIDTH)
    adapters, repeated = stacked(parts, 0), Repeated(parts, [x])
    inside, out = linear_shape(next(iter(parts.projections.values()))) or (0, 0)
    usual = flops(parts, x, adapters, None)
    assert flops(parts, x, adapters, repeated) == usual, "the first pass computes all"
    assert flops(parts, x, adapters, repeated) == usual - spared * 2 * ROWS * inside * out
    assert flops(parts, x.clone(), adapters, repeated) == usual, "another input"


def test_a_map_with_other_hooks_always_runs() -> None:
    parts, x, seen = parts_of("llama"), torch.randn(1, ROWS, WIDTH), list[int]()
    gate, up, _down = parts.projections.values()
    gate.register_forward_hook(lambda _module, args, _output: seen.append(args[0].shape[-2]))
    adapters, repeated = stacked(parts, 0), Repeated(parts, [x])
    for _ in range(2):
        with torch.no_grad(), applied(parts, adapters, repeated=repeated):
            parts.run_ffn(x)
    assert seen == [ROWS, ROWS]
    assert not up._forward_pre_hooks, "its own hooks are removed"


def test_a_pass_that_fails_leaves_nothing_behind() -> None:
    parts, x = parts_of("llama"), torch.randn(1, ROWS, WIDTH)
    adapters, repeated = stacked(parts, 0), Repeated(parts, [x])
    name, gate = next(iter(parts.projections.items()))
    with torch.no_grad(), applied(parts, adapters, repeated=repeated):
        right = parts.run_ffn(x)
        other = parts.run_ffn(x + 1)
        bad = gate.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            parts.run_ffn(x)
        bad.remove()
        torch.testing.assert_close(parts.run_ffn(x + 1), other)
        torch.testing.assert_close(parts.run_ffn(x), right)
    assert name in parts.projections


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2_moe"])
def test_passes_over_few_rows_give_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, data = Backbone.of(build(family).requires_grad_(False)), rows(20, 9)
    settings = FastMem(steps=4, learning_rate=4e-3, rank=4, target_kl=0.05, shortlist=16)
    found = []
    for limit in (256, 6):
        monkeypatch.setattr("memograft.memory.fastmem.rows._LONGEST", limit)
        monkeypatch.setattr("memograft.memory.fastmem.loss._ROWS", limit)
        found.append(memorize(parts, data, settings))
    for (adapter, report), (same, other) in zip(*found, strict=True):
        assert adapter is not None
        assert same is not None
        assert report.losses == pytest.approx(other.losses, rel=2e-4)
        assert report.kl == pytest.approx(other.kl, rel=1e-3)
        assert report.token_losses_after == pytest.approx(other.token_losses_after, rel=1e-3, abs=1e-4)
        for name, b in adapter.lora_b.items():
            one, two = b @ adapter.lora_a[name], same.lora_b[name] @ same.lora_a[name]
            assert float((one - two).norm() / one.norm()) < 0.1  # Adam magnifies what is only rounding
