"""The base model's logits beside the memorized ones equal those of a plain forward pass, for all kinds of models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from families import FAMILIES, build
from memograft.model.adapter import Adapter, applied, stack
from memograft.model.backbone import Backbone, linear_shape
from memograft.model.base_logits import BaseLogits, base_logits
from test_backbone import assert_same, state

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
IDS = torch.randint(3, 320, (4, 7), generator=torch.Generator().manual_seed(1))
WANTED = [3, 0]


def projected() -> Any:
    """Embeddings narrower than the layers: a projection between the last norm and the head."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING["opt"](**FAMILIES["opt"] | {"word_embed_proj_dim": 16})
    return AutoModelForCausalLM.from_config(config).eval()


def adapter(backbone: Backbone, seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    a, b = {}, {}
    for name, module in backbone.projections.items():
        inside, out = linear_shape(module) or (0, 0)
        a[name] = torch.randn(2, inside, generator=generator) * 0.2
        b[name] = torch.randn(out, 2, generator=generator) * 0.2
    return Adapter(a, b)


def both(parts: Backbone, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Memorized logits without and with base rows (B, T, V), and the logits of the base rows (G, T, V)."""
    adapters = [adapter(parts, seed) if parts.projections and seed != 1 else None for seed in range(len(IDS))]
    stacked = stack(adapters, parts)
    with torch.inference_mode():
        with applied(parts, stacked):
            alone = parts.model(input_ids=IDS, **options).logits
        with applied(parts, stacked, bare=len(WANTED)), base_logits(parts, len(IDS), WANTED) as seen:
            together = parts.model(input_ids=IDS, **options).logits
    return alone, together, seen.logits


def difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a.float() - b.float()).abs().max() / b.abs().max())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", [*FAMILIES, "opt, projected"])
def test_base_logits_are_those_of_a_plain_pass(family: str, dtype: torch.dtype) -> None:
    model = projected().to(dtype) if family == "opt, projected" else build(family, dtype=dtype)
    parts, before = Backbone.of(model), state(model)
    with torch.no_grad():
        plain = model(input_ids=IDS).logits
    alone, together, base = both(parts)
    assert difference(base, plain[WANTED]) < TOLERANCE[dtype]
    assert difference(together, alone) < TOLERANCE[dtype]
    if parts.projections:
        assert difference(together[WANTED], base) > 0.05, "the memories change nothing"
    last = both(parts, logits_to_keep=1)
    assert difference(last[2], plain[WANTED, -1:]) < TOLERANCE[dtype]
    assert_same(before, state(model))


def test_hooks_of_the_users_own_act_on_all_rows() -> None:
    model = build("llama")
    parts = Backbone.of(model)
    for module in (model.model.layers[-1].mlp, model.lm_head):
        module.register_forward_pre_hook(lambda _module, args: (args[0] * 1.5,))
        module.register_forward_hook(lambda _module, _args, out: out * 1.5)
    with torch.no_grad():
        plain = model(input_ids=IDS).logits
    assert difference(both(parts)[2], plain[WANTED]) < 1e-5


def test_an_ffn_that_is_called_by_keyword() -> None:
    x = torch.randn(2, 3, 32)
    args, named = BaseLogits(Backbone.of(build("llama")), 2, [1]).on_ffn_input(
        nn.Identity(), (), {"states": x, "flag": 1}
    )
    assert (args, named["flag"]) == ((), 1)
    assert torch.equal(named["states"], torch.cat([x, x[1:]]))


def test_an_exception_inside_leaves_no_hooks_and_no_rows() -> None:
    parts = Backbone.of(build("opt"))
    before = state(parts.model)
    with torch.no_grad(), pytest.raises(IndexError), base_logits(parts, 1, [0]):
        parts.model(input_ids=torch.tensor([[10_000]]))
    assert_same(before, state(parts.model))
