"""Write small GGUF files with the package `gguf`, from a random Llama and the tests' byte-level tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants

from tokenizers_ import SPECIAL

CONTROL, NORMAL = 3, 1
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write(
    file: Path,
    model: Any,
    tokenizer: Any,
    *,
    architecture: str = "llama",
    splitting: str = "gpt-2",
    quantised: bool = False,
    without: str = "no tensor",
    vocabulary: bool = True,
    extra: dict[str, int | str] | None = None,
) -> Path:
    """Write the file. `without` omits tensors whose name contains it; `quantised` uses Q8_0 where possible."""
    writer = GGUFWriter(file, architecture)
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    for key, value in (extra or {}).items():
        writer.add_string(key, value) if isinstance(value, str) else writer.add_uint16(key, value)
    if vocabulary:
        add_vocabulary(writer, tokenizer, splitting)
    for name, tensor in model.state_dict().items():
        if without not in name:
            add_tensor(writer, name, tensor.float().numpy(), config, quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def add_vocabulary(writer: GGUFWriter, tokenizer: Any, splitting: str) -> None:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in SPECIAL else NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)


def add_tensor(writer: GGUFWriter, name: str, values: np.ndarray, config: Any, quantised: bool) -> None:
    place, kind = name.rsplit(".", 1)
    layer = ""
    if place.startswith("model.layers."):
        _, _, number, place = place.split(".", 3)
        layer = f"blk.{number}."
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(NAMES[place])
    if heads:  # the format interleaves the halves of a rotation
        rows = values.reshape(heads, 2, values.shape[0] // heads // 2, -1)
        values = np.ascontiguousarray(rows.swapaxes(1, 2).reshape(values.shape))
    raw = None
    if quantised and values.ndim == 2 and values.shape[1] % 32 == 0:
        raw = GGMLQuantizationType.Q8_0
        values = quants.quantize(values, raw)
    writer.add_tensor(f"{layer}{NAMES[place]}.{kind}", values, raw_dtype=raw)
