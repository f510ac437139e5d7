"""Memorizing: batches equal single runs, guards roll back, the report is right, and the model is unchanged."""

from __future__ import annotations

import threading
from dataclasses import FrozenInstanceError, asdict, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from families import FAMILIES, ROUTED, VOCAB, build
from memograft.errors import SettingsError, UnsupportedModelError
from memograft.memory.fastmem.memory import FastMem
from memograft.memory.fastmem.rows import TrainingRows, merge
from memograft.memory.fastmem.train import memorize
from memograft.memory.report import MemoryReport
from memograft.model.adapter import Adapter, applied, dense_weights, replaced, stack
from memograft.model.backbone import Backbone
from memograft.model.prefill import prefill
from test_backbone import assert_same, state
from test_objective import rows

DENSE = sorted(set(FAMILIES) - ROUTED)
QUICK = FastMem(steps=4, learning_rate=4e-3, rank=4, target_kl=None, shortlist=None)
FULL = FastMem.paper(steps=3, learning_rate=1e-3)


@cache
def backbone(family: str, dtype: torch.dtype = torch.float32) -> Backbone:
    return Backbone.of(build(family, dtype=dtype).requires_grad_(False))


def context(parts: Backbone, length: int = 12, seed: int = 0) -> TrainingRows:
    """Training rows of one random text, from a real prefill."""
    ids = torch.randint(3, VOCAB, (length + 2,), generator=torch.Generator().manual_seed(seed)).tolist()
    filled = prefill(parts, [ids], 0)
    return TrainingRows(filled.x[0, :length], filled.residual[0, :length], filled.ids[0, 1 : length + 1], (length,))


def difference(one: Adapter, other: Adapter) -> float:
    """Largest difference between the changes of two adapters, relative to the largest change."""
    worst = 0.0
    for name in one.lora_a:
        a, b = (m.lora_b[name] @ m.lora_a[name] for m in (one, other))
        worst = max(worst, float((a - b).abs().max() / b.abs().max()))
    return worst


def distance(one: Adapter, other: Adapter) -> float:
    """Largest distance of what two adapters change, relative to the size of the change."""
    changes = [[m.lora_b[name] @ m.lora_a[name] for m in (one, other)] for name in one.lora_a]
    return max(float((a - b).norm() / b.norm()) for a, b in changes)


@pytest.mark.parametrize("family", DENSE)
def test_memorizing_lowers_the_loss_and_leaves_the_model_alone(family: str) -> None:
    parts = Backbone.of(build(family))
    data, before = context(parts), state(parts.model)
    for settings in (QUICK, FULL):
        adapter, report = memorize(parts, data, settings)[0]
        assert adapter is not None
        assert report.loss_after < report.loss_before
        assert all(t.dtype == torch.float32 for t in (*adapter.lora_a.values(), *adapter.lora_b.values()))
        assert set(adapter.lora_a) == set(parts.projections)
    assert_same(before, state(parts.model))


@pytest.mark.parametrize("settings", [QUICK, replace(QUICK, shortlist=16), FULL], ids=["lora", "shortlist", "full"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "qwen2_moe", "gemma2"])
def test_a_batch_gives_what_each_would_have_got_alone(
    family: str, settings: FastMem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memograft.memory.fastmem.rows._SHORTEST", 4)  # several blocks for a context
    parts, data = backbone(family), rows(5, 30, 2)
    for row, (adapter, report) in enumerate(memorize(parts, data, settings)):
        alone, own = memorize(parts, data.single(row), settings)[0]
        assert adapter is not None
        assert alone is not None
        assert report.losses == pytest.approx(own.losses, rel=2e-4)
        assert report.token_losses_after == pytest.approx(own.token_losses_after, rel=1e-3, abs=1e-4)
        assert report.tokens == own.tokens
        assert distance(adapter, alone) < 0.1  # Adam divides gradients that are only rounding by their own size


def test_a_row_that_fails_does_not_harm_its_neighbours() -> None:
    parts, data = backbone("llama"), rows(5, 7)
    expected = memorize(parts, data.single(1), QUICK)[0][1]
    data.x[0, 0] = torch.nan
    (none, failed), (adapter, report) = memorize(parts, data, QUICK)
    assert none is None
    assert failed.rolled_back
    assert adapter is not None
    assert report.losses == pytest.approx(expected.losses, rel=1e-4)


def test_shortlists() -> None:
    parts, data = backbone("llama"), context(backbone("llama"), 20)
    full, whole, short = (memorize(parts, data, replace(QUICK, shortlist=s))[0] for s in (None, VOCAB, 24))
    assert full[1].losses == whole[1].losses
    assert full[1].loss_before == pytest.approx(short[1].loss_before, rel=1e-5)
    assert short[1].loss_after < short[1].loss_before
    with torch.no_grad(), applied(parts, stack([short[0]], parts)):
        logp = parts.logits(data.x[None], data.residual[None])[0].log_softmax(-1)
    assert short[1].loss_after == pytest.approx(float(-logp.gather(-1, data.targets[..., None]).mean()), rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "opt"])
def test_a_full_adapter_is_the_trained_weights(family: str) -> None:
    """As a LoRA of rank D it gives the same output as the replaced weights."""
    parts = backbone(family)
    data = context(parts)
    adapter, report = memorize(parts, data, FULL)[0]
    assert adapter is not None
    assert adapter.rank == parts.width
    with torch.no_grad(), applied(parts, stack([adapter], parts)):
        logp = parts.logits(data.x[None], data.residual[None])[0].log_softmax(-1)
    assert float(-logp.gather(-1, data.targets[..., None]).mean()) == pytest.approx(report.loss_after, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "phi"])
@torch.no_grad()
def test_replacing_weights_by_themselves_changes_nothing(family: str) -> None:
    parts = backbone(family)
    data, before = context(parts), state(parts.model)
    weights = dense_weights(parts, list(parts.projections))
    with replaced(parts, weights):
        now = parts.logits(data.x, data.residual)
    torch.testing.assert_close(now, parts.logits(data.x, data.residual), rtol=1e-5, atol=1e-5)
    with replaced(parts, {name: w * 2 for name, w in weights.items()}):
        assert not torch.allclose(parts.logits(data.x, data.residual), now)
    assert_same(before, state(parts.model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("settings", [QUICK, replace(QUICK, shortlist=16), FULL], ids=["lora", "shortlist", "full"])
def test_adapters_of_half_precision_models_are_float32(dtype: torch.dtype, settings: FastMem) -> None:
    parts = backbone("llama", dtype)
    adapter, report = memorize(parts, context(parts, 30), replace(settings, steps=8))[0]
    assert adapter is not None, report.reason
    assert {t.dtype for t in (*adapter.lora_a.values(), *adapter.lora_b.values())} == {torch.float32}
    assert report.loss_after < report.loss_before


def test_a_weight_that_is_infinite_rolls_back() -> None:
    parts = Backbone.of(build("llama"))
    data = context(parts)
    with torch.no_grad():
        parts.projections["model.layers.1.mlp.down_proj"].weight[0, 0] = torch.inf  # type: ignore[index,operator]
    for settings in (QUICK, FULL):
        adapter, report = memorize(parts, data, settings)[0]
        assert adapter is None
        assert report.rolled_back
        assert "not a finite number; try a smaller `learning_rate`" in str(report.reason)


@pytest.mark.parametrize("settings", [QUICK, FULL], ids=["lora", "full"])
def test_a_learning_rate_that_explodes_rolls_back(settings: FastMem) -> None:
    parts = backbone("llama")
    adapter, report = memorize(parts, context(parts), replace(settings, learning_rate=1e30))[0]
    assert adapter is None
    assert report.rolled_back
    assert "learning_rate" in str(report.reason)


def test_a_loss_that_rises_rolls_back() -> None:
    parts = backbone("llama")
    adapter, report = memorize(parts, context(parts), replace(QUICK, learning_rate=50.0, steps=3))[0]
    assert adapter is None
    assert report.rolled_back
    assert str(report.reason).startswith(f"the loss rose from {report.loss_before:.3f} to {report.loss_after:.3f}")


def test_a_kl_beyond_its_bound_rolls_back() -> None:
    parts = backbone("llama")
    adapter, report = memorize(parts, context(parts), replace(QUICK, max_kl=1e-4))[0]
    assert adapter is None
    assert report.kl > 1e-4
    assert report.reason is not None
    assert report.reason.startswith(f"the KL of {report.kl:.3f} is beyond `max_kl` = 0.0001; try fewer `steps`")


def test_a_context_of_one_token() -> None:
    parts = backbone("llama")
    adapter, report = memorize(parts, context(parts, 1), QUICK)[0]
    assert adapter is not None
    assert len(report.tokens) == 1


def test_the_report() -> None:
    parts = backbone("llama")
    data = context(parts)
    seen = memorize(parts, data, QUICK)[0][1]
    assert seen.steps == len(seen.losses) == 4
    assert seen.losses[0] == pytest.approx(seen.loss_before, rel=1e-5)  # B and the KL are zero at first
    assert seen.loss_before == pytest.approx(sum(seen.token_losses_before) / 12)
    assert seen.loss_after == pytest.approx(sum(seen.token_losses_after) / 12)
    assert list(seen.tokens) == data.targets.tolist()
    assert seen.kl > 0
    assert seen.seconds > 0
    assert seen.settings == asdict(QUICK.resolved())
    assert (seen.rolled_back, seen.reason, seen.documents) == (False, None, ())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("settings", [QUICK, FULL], ids=["lora", "full"])
def test_it_ends_where_the_model_has_moved_far_enough(family: str, settings: FastMem) -> None:
    """A row that reaches the target early is frozen while others continue, and equals a single run."""
    parts = backbone(family)
    many = replace(settings, steps=30, learning_rate=2e-3)
    near = replace(many, target_kl=0.01)
    short, long = context(parts, 8), context(parts, 24, seed=1)
    together = memorize(parts, merge([short, long]), near)
    for data, (adapter, report) in zip((short, long), together, strict=True):
        free, alone = memorize(parts, data, many)[0][1], memorize(parts, data, near)[0]
        assert free.kl > 0.02, "it never moves that far: the test shows nothing"
        assert report.kl == pytest.approx(0.01, rel=0.06)
        assert report.steps == alone[1].steps < 30
        assert report.loss_before > report.loss_after > free.loss_after
        assert adapter is not None
        assert alone[0] is not None
        assert difference(adapter, alone[0]) < 1e-3


def test_a_target_that_is_never_reached_changes_nothing() -> None:
    parts = backbone("llama")
    one, other = (memorize(parts, context(parts), replace(QUICK, target_kl=t))[0] for t in (None, 1e6))
    assert one[0] is not None
    assert other[0] is not None
    assert one[1].losses == other[1].losses
    assert all(torch.equal(one[0].lora_b[n], other[0].lora_b[n]) for n in one[0].lora_b)


def test_seeds() -> None:
    parts = backbone("llama")
    one, same, other = (memorize(parts, context(parts), replace(QUICK, seed=s))[0][0] for s in (1, 1, 2))
    assert one is not None
    assert same is not None
    assert other is not None
    assert all(torch.equal(one.lora_b[n], same.lora_b[n]) for n in one.lora_b)
    assert not any(torch.equal(one.lora_a[n], other.lora_a[n]) for n in one.lora_a)


def test_neither_the_global_random_state_nor_the_thread_s_gradients_matter() -> None:
    parts = backbone("llama")
    data, random_state = context(parts), torch.get_rng_state()
    with torch.no_grad():
        adapter = memorize(parts, data, QUICK)[0][0]
    assert adapter is not None
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("settings", [QUICK, FULL], ids=["lora", "full"])
def test_cancelling_stops_between_steps(settings: FastMem) -> None:
    parts, asked = backbone("llama"), []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) > 2

    report = memorize(parts, context(parts), settings, cancelled=cancelled)[0][1]
    assert report.steps == 2
    unstarted = memorize(parts, context(parts), settings, cancelled=lambda: True)[0][1]
    assert unstarted.steps == 0
    assert unstarted.loss_after == pytest.approx(unstarted.loss_before)


def test_an_exception_while_memorizing_leaves_the_model_alone() -> None:
    parts = backbone("llama")
    data, before = context(parts), state(parts.model)
    with pytest.raises(ZeroDivisionError):
        memorize(parts, data, QUICK, cancelled=lambda: bool(1 / 0))
    broken = TrainingRows(data.x, data.residual, data.targets + VOCAB, data.lengths)
    for settings in (QUICK, FULL, replace(QUICK, shortlist=16)):
        with pytest.raises((RuntimeError, IndexError)):
            memorize(parts, broken, settings)
    assert_same(before, state(parts.model))


def test_clipping() -> None:
    parts = backbone("llama")
    runs = [memorize(parts, context(parts), replace(FULL, clip_norm=c))[0][1] for c in (None, 1e9, 1e-3)]
    assert runs[0].losses == runs[1].losses
    assert runs[2].losses[0] == runs[0].losses[0]
    assert runs[2].losses[-1] > runs[0].losses[-1]


def test_routed_experts_are_refused_and_quantised_weights_for_the_full_adapter() -> None:
    with pytest.raises(UnsupportedModelError, match="this model's has routed experts only; answer with memory=None"):
        FastMem().check(backbone("mixtral"))
    with pytest.raises(UnsupportedModelError, match="routed experts only"):
        memorize(backbone("mixtral"), context(backbone("mixtral")), QUICK)
    parts = Backbone.of(build("llama").requires_grad_(False))
    for module in parts.projections.values():
        module.weight.data = module.weight.data.to(torch.float8_e4m3fn)  # type: ignore[operator,union-attr]
    FastMem().check(parts)
    with pytest.raises(UnsupportedModelError, match='last FFN is quantised or offloaded; use adapter="lora"'):
        FastMem.paper().check(parts)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"steps": 0}, '`steps` must be a whole number of at least 1 or "auto", got 0'),
        ({"steps": 2.5}, "`steps` must be a whole number"),
        ({"steps": True}, "`steps` must be a whole number"),
        ({"steps": "4"}, "`steps` must be a whole number of at least 1 or \"auto\", got '4'"),
        ({"rank": "auto"}, "`rank` must be a whole number of at least 1, got 'auto'"),
        ({"rank": -1}, "`rank` must be a whole number of at least 1, got -1"),
        ({"learning_rate": 0}, '`learning_rate` must be a positive number or "auto", got 0'),
        ({"learning_rate": "1e-5"}, "`learning_rate` must be a positive number or \"auto\", got '1e-5'"),
        ({"learning_rate": float("nan")}, '`learning_rate` must be a positive number or "auto", got nan'),
        ({"target_kl": 0}, '`target_kl` must be a positive number or "auto", or None for no end, got 0'),
        ({"max_kl": -1.0}, "`max_kl` must be a positive number"),
        ({"kl_weight": -0.1}, "`kl_weight` must be a number that is not negative, got -0.1"),
        ({"contrast": float("inf")}, "`contrast` must be a number that is not negative, got inf"),
        ({"weight_decay": float("inf")}, "`weight_decay` must be a number that is not negative"),
        ({"clip_norm": 0.0}, "`clip_norm` must be a positive number, or None for no clipping, got 0.0"),
        ({"shortlist": 1}, "`shortlist` must be at least 2 tokens, or None for all, got 1"),
        ({"shortlist": 8.5}, "`shortlist` must be at least 2 tokens"),
        ({"seed": "x"}, "`seed` must be a whole number, got 'x'"),
        ({"fallback": None}, "`fallback` must be True or False"),
        ({"adapter": "dora"}, r"`adapter` must be one of \('lora', 'full'\), got 'dora'"),
        ({"template": "user"}, "`template` must be one of"),
        ({"gate": "rag"}, "`gate` must be one of"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(SettingsError, match=match):
        FastMem(**changes)


def test_settings_are_values() -> None:
    assert len({FastMem(), FastMem(), FastMem(seed=1)}) == 2
    with pytest.raises(FrozenInstanceError):
        FastMem().steps = 3  # type: ignore[misc]


def test_the_papers_recipe_is_written_down() -> None:
    recipe = FastMem.paper()
    wanted = {"steps": 10, "learning_rate": 1e-5, "kl_weight": 0.1, "adapter": "full", "template": "assistant"}
    wanted |= {"shortlist": None, "weight_decay": 0.01, "clip_norm": 1.0}
    assert wanted.items() <= asdict(recipe).items()
    assert recipe.gate is None
    assert FastMem.paper(steps=20).steps == 20


def test_an_adapter_acts_in_its_own_thread_only() -> None:
    parts = backbone("llama")
    data = context(parts)
    adapter = memorize(parts, data, QUICK)[0][0]
    with torch.no_grad():
        plain = parts.logits(data.x, data.residual)
    elsewhere: list[Tensor] = []

    def run() -> None:
        with torch.no_grad():
            elsewhere.append(parts.logits(data.x, data.residual))

    with torch.no_grad(), applied(parts, stack([adapter], parts)):
        assert not torch.equal(parts.logits(data.x, data.residual), plain)
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert torch.equal(elsewhere[0], plain)


@torch.no_grad()
def test_stacked_rows_have_their_own_memories() -> None:
    """With different ranks and projections, and without a memory, in one batch."""
    parts, data = backbone("llama"), rows(4, 4, 4)
    x, residual = data.x.reshape(3, 4, -1), data.residual.reshape(3, 4, -1)
    narrow = memorize(parts, data.single(0), replace(QUICK, rank=2))[0][0]
    assert narrow is not None
    down = next(name for name in narrow.lora_a if "down" in name)
    narrow = Adapter({down: narrow.lora_a[down]}, {down: narrow.lora_b[down]})
    wide = memorize(parts, data.single(2), QUICK)[0][0]
    adapters = [narrow, None, wide]
    with applied(parts, stack(adapters, parts)):
        together = parts.logits(x, residual)
    for row, adapter in enumerate(adapters):
        with applied(parts, stack([adapter], parts)):
            alone = parts.logits(x[row : row + 1], residual[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(together[1], parts.logits(x, residual)[1])
    assert stack([None, None], parts) == {}


def test_a_report_judges() -> None:
    facts: dict[str, Any] = {"tokens": [1, 2], "losses": [2.0], "seconds": 0.1, "settings": {}, "max_kl": 1.0}
    judge = MemoryReport.of
    assert not judge(before=[2, 2], after=[1, 3], kl=0.5, **facts).rolled_back
    assert judge(before=[2, 2], after=[1, 3.1], kl=0.5, **facts).rolled_back
    assert judge(before=[2, 2], after=[1, 1], kl=1.1, **facts).rolled_back
    assert judge(before=[2, 2], after=[1, float("nan")], kl=0.5, **facts).rolled_back
    assert judge(before=[2, 2], after=[1, 1], kl=float("inf"), **facts).rolled_back
    assert judge(before=[2, 2], after=[1, 1], kl=0.1, **(facts | {"losses": [float("nan")]})).rolled_back
