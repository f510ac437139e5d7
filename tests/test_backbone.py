"""Backbones are exact for supported models, other models are refused with a reason, and models are not changed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, LlamaForCausalLM, T5Config, T5ForConditionalGeneration
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from families import FAMILIES, ROUTED, build
from memograft.errors import UnsupportedModelError
from memograft.model.backbone import Backbone, cache_of, has_plain_weight

COMMON = FAMILIES["llama"]
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
HYBRIDS: dict[str, dict[str, Any]] = {
    "mamba": {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "jamba": COMMON | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "expert_layer_period": 2},
    "falcon_h1": COMMON | {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8},
    "qwen3_next": COMMON | MOE | LINEAR | {"layer_types": ["linear_attention", "full_attention"]},
    "minimax": COMMON | {"num_local_experts": 4},
}


def ids(rows: int = 1, length: int = 12) -> Tensor:
    return torch.randint(3, 320, (rows, length), generator=torch.Generator().manual_seed(1))


def from_config(kind: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**settings)).eval()
    return model


def llama(cls: type[nn.Module] = LlamaForCausalLM) -> Any:
    torch.manual_seed(0)
    return cls(CONFIG_MAPPING["llama"](**COMMON)).eval()


def state(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that must not change."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "tensors": {n: t.clone() for n, t in (*model.named_parameters(), *model.named_buffers())},
        "grad": {n: (p.requires_grad, p.grad) for n, p in model.named_parameters()},
        "training": {n: m.training for n, m in model.named_modules()},
        "hooks": {n: [list(getattr(m, h)) for h in hooks] for n, m in model.named_modules()},
        "modules": {n: type(m) for n, m in model.named_modules()},
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    old, new = before.pop("tensors"), after.pop("tensors")
    assert before == after
    assert old.keys() == new.keys()
    assert all(torch.equal(old[n], new[n]) for n in old)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_replay_equals_the_models_own_logits_and_leaves_the_model_alone(family: str) -> None:
    model = build(family)
    before = state(model)
    parts = Backbone.of(model)
    tokens = ids(rows=2)
    own = model(input_ids=tokens, use_cache=True)
    with torch.no_grad():
        with parts.watch() as seen:
            skipped = model(input_ids=tokens, use_cache=True)
        replayed = parts.logits(*seen.rows())
    assert (replayed - own.logits).abs().max() / own.logits.abs().max() < 1e-5
    for one, other in zip(cache_of(own).layers, cache_of(skipped).layers, strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)
    assert bool(parts.projections) == (family not in ROUTED)
    assert parts.width == 32
    assert parts.max_length == 256
    assert_same(before, state(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_half_precision_models_load(family: str, dtype: torch.dtype) -> None:
    parts = Backbone.of(build(family, dtype=dtype))
    with parts.watch() as seen, torch.no_grad():
        own = parts.model(input_ids=ids()).logits
    assert seen.rows()[0].dtype == dtype
    assert own.dtype == dtype


def test_projections_are_the_linear_maps_of_the_ffn() -> None:
    assert list(Backbone.of(build("llama")).projections) == [
        f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")
    ]
    shared = "model.layers.1.mlp.shared_expert."
    assert all(name.startswith(shared) for name in Backbone.of(build("qwen2_moe")).projections)
    assert Backbone.of(build("mixtral")).projections == {}


def test_weights_that_require_gradients_keep_requiring_them() -> None:
    model = build("llama")
    assert all(p.requires_grad for p in model.parameters())
    Backbone.of(model)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_an_exception_inside_watch_leaves_no_hooks() -> None:
    parts = Backbone.of(build("llama"))
    before = state(parts.model)
    with pytest.raises(IndexError), parts.watch():
        parts.model(input_ids=torch.tensor([[10_000]]))
    assert_same(before, state(parts.model))


def test_a_failed_probe_leaves_no_hooks() -> None:
    model = llama(_Louder)
    before = state(model)
    with pytest.raises(UnsupportedModelError):
        Backbone.of(model)
    assert_same(before, state(model))


def test_encoder_decoders_are_refused() -> None:
    config = T5Config(vocab_size=320, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    with pytest.raises(UnsupportedModelError, match=r"T5ForConditionalGeneration is an encoder-decoder.*decoder-only"):
        Backbone.of(T5ForConditionalGeneration(config).eval())


@pytest.mark.parametrize("kind", sorted(HYBRIDS))
def test_hybrid_and_recurrent_models_are_refused(kind: str) -> None:
    model = from_config(kind, **HYBRIDS[kind])
    with pytest.raises(
        UnsupportedModelError, match=r"keys and values.*hybrid and recurrent models.*pure attention model"
    ):
        Backbone.of(model)


def test_models_without_a_head_are_refused() -> None:
    model = AutoModel.from_config(CONFIG_MAPPING["llama"](**COMMON)).eval()
    with pytest.raises(
        UnsupportedModelError, match="must be a causal LM of transformers, got LlamaModel; load it with"
    ):
        Backbone.of(model)
    with pytest.raises(UnsupportedModelError, match="got Linear"):
        Backbone.of(nn.Linear(2, 2))


def test_a_model_in_training_mode_is_refused_and_not_switched() -> None:
    model = build("llama")
    model.model.layers[0].train()
    before = state(model)
    with pytest.raises(UnsupportedModelError, match=r"in training mode.*call model.eval\(\) first"):
        Backbone.of(model)
    assert_same(before, state(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opt_with_norms_after_the_residual_is_refused_at_any_precision(dtype: torch.dtype) -> None:
    """An untrained FFN adds so little that half precision would hide the difference; the probe's noise shows it."""
    model = from_config("opt", **FAMILIES["opt"], do_layer_norm_before=False).to(dtype)
    with pytest.raises(UnsupportedModelError, match="gives other logits than the model"):
        Backbone.of(model)


def test_an_ffn_that_adds_the_residual_itself_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="probing BloomForCausalLM failed with TypeError"):
        Backbone.of(from_config("bloom", vocab_size=320, hidden_size=32, n_layer=2, n_head=4))


class _Louder(LlamaForCausalLM):
    """Adds something to its logits."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = out.logits + torch.linspace(0, 0.1, out.logits.shape[-1])
        return out


class _Detour(LlamaForCausalLM):
    """Changes the hidden state between norm and head outside of any module."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.norm.register_forward_hook(lambda _module, _args, out: out * 1.5 + 0.1)
        self.model.register_forward_hook(self._scale)

    def _scale(self, _module: nn.Module, _args: Any, out: Any) -> Any:
        out.last_hidden_state = out.last_hidden_state * 2
        return out


@pytest.mark.parametrize("cls", [_Louder, _Detour])
def test_a_tail_that_is_not_understood_is_refused(cls: type[nn.Module]) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"gives other logits than the model|does more between its last layer"
    ):
        Backbone.of(llama(cls))


class _Experts(nn.Module):
    """Routed experts that are ordinary linear maps, and one weight that is used without calling its module."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(48, 32) for _ in range(2))
        self.up = nn.Linear(32, 48)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(nn.functional.linear(x, self.up.weight))
        out = torch.zeros_like(x)
        for n, expert in enumerate(self.down):
            mine = x[..., 0] > 0 if n else x[..., 0] <= 0
            out[mine] = expert(h[mine])
        return out


def test_linear_maps_that_not_every_token_passes_are_not_adapted() -> None:
    model = llama()
    model.model.layers[-1].mlp = _Experts()
    assert Backbone.of(model.eval()).projections == {}


def test_layers_shared_with_the_trunk_are_refused() -> None:
    model = build("llama")
    model.model.layers[0].mlp = model.model.layers[1].mlp
    with pytest.raises(UnsupportedModelError, match="gives other logits than the model"):
        Backbone.of(model)


def test_an_idle_list_of_as_many_modules_is_not_taken_for_the_layers() -> None:
    model = build("llama")
    layers, model.model.layers = model.model.layers, None
    model.model.tower = nn.ModuleList(nn.Linear(2, 2) for _ in layers)  # listed first, but never run
    model.model.layers = layers
    assert Backbone.of(model.eval()).layer is layers[-1]


# PEFT uses an old name of transformers.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_of_peft_are_merged_or_kept_out_of_the_last_ffn() -> None:
    from peft import LoraConfig, get_peft_model

    def wrapped(*targets: str) -> Any:
        config = LoraConfig(r=2, target_modules=list(targets), init_lora_weights=False)
        return get_peft_model(build("llama"), config).eval()

    with pytest.raises(UnsupportedModelError, match=r"wrapped by PEFT; pass model.merge_and_unload\(\), or"):
        Backbone.of(wrapped("q_proj"))
    assert len(Backbone.of(wrapped("q_proj").get_base_model()).projections) == 3
    with pytest.raises(UnsupportedModelError, match="the last FFN already carries an adapter of PEFT; merge it first"):
        Backbone.of(wrapped("down_proj").get_base_model())
    assert len(Backbone.of(wrapped("down_proj").merge_and_unload()).projections) == 3


def test_a_model_placed_by_a_device_map(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path)
    placed = AutoModelForCausalLM.from_pretrained(tmp_path, device_map={"": "cpu"}, dtype=torch.float32)
    tokens = ids()
    with Backbone.of(placed).watch() as seen, torch.no_grad():
        placed(input_ids=tokens)
    own = build("llama")(input_ids=tokens).logits
    with torch.no_grad():
        torch.testing.assert_close(Backbone.of(placed).logits(*seen.rows()), own, rtol=1e-5, atol=1e-4)


def test_plain_weights_are_told_from_packed_and_offloaded_ones() -> None:
    linear = nn.Linear(4, 4)
    assert has_plain_weight(linear)
    assert not has_plain_weight(nn.Linear(4, 4, device="meta"))
    assert not has_plain_weight(nn.ReLU())
    packed = copy.deepcopy(linear).requires_grad_(False)
    packed.weight.data = packed.weight.data.to(torch.float8_e4m3fn)
    assert not has_plain_weight(packed)
