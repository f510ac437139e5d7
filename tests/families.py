"""Tiny random models of many decoder families, built from their configs: no weights, no network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB, WIDTH, WINDOW = 320, 32, 256

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": WINDOW,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ALL_HEADS = {"num_key_value_heads": 4}
_GPT2 = {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": WINDOW, "vocab_size": VOCAB}
_IDS = {k: _COMMON[k] for k in ("pad_token_id", "bos_token_id", "eos_token_id")}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _COMMON,
    "mistral": _COMMON,
    "qwen2": _COMMON,
    "qwen3": _COMMON | {"head_dim": 8},
    "gemma2": _COMMON | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64},
    "gemma3_text": _COMMON | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64},
    "olmo2": _COMMON,
    "phi": _COMMON | _ALL_HEADS,
    "phi3": _COMMON,
    "gpt_neox": _COMMON,
    "gptj": _GPT2 | _IDS | {"rotary_dim": 4},
    "gpt2": _GPT2 | _IDS,
    "opt": _COMMON | {"ffn_dim": 48, "word_embed_proj_dim": WIDTH},
    "falcon": _COMMON | {"new_decoder_architecture": False, "multi_query": True, "ffn_hidden_size": 48},
    "stablelm": _COMMON | _ALL_HEADS,
    "granite": _COMMON | {"residual_multiplier": 0.3, "logits_scaling": 4.0, "embedding_multiplier": 3.0},
    "cohere": _COMMON | {"logit_scale": 0.25},
    "smollm3": _COMMON,
    "mixtral": _COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": _COMMON | _MOE | {"shared_expert_intermediate_size": 40, "decoder_sparse_step": 1},
}
ROUTED = {"mixtral"}  # families whose last FFN has only routed experts, which are not adapted


def build(
    family: str, seed: int = 0, dtype: torch.dtype = torch.float32, changes: Mapping[str, Any] | None = None
) -> PreTrainedModel:
    """A random model with weights large enough for peaked distributions; `changes` are fields of its config."""
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[family](**FAMILIES[family] | dict(changes or {}))
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.3 if "embed" not in name else 0.8)
            elif "bias" in name:
                parameter.normal_(0.0, 0.1)
    return model.to(dtype).eval()
