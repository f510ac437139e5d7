"""The parts of a model's configuration that change its outputs but not its weights: architecture and rotary embedding.

Only fields that checkpoints themselves have are used (an allowlist), in a normalised form. So the result does not
depend on the version of transformers, the path, dtype, quantisation, attention implementation or cache. The partial
rotary factor and the original context length are left out, because some versions derive them and others store them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

__all__ = ["stated"]

_ROPE = frozenset(
    "rope_type rope_theta factor low_freq_factor high_freq_factor beta_fast beta_slow short_factor long_factor "
    "attention_factor mscale mscale_all_dim mrope_section".split()
)


def stated(config: PretrainedConfig) -> str:
    """JSON of the text model's type and rotary parameters, per layer type if they differ."""
    text = config.get_text_config()
    return json.dumps([text.model_type, _rope(getattr(text, "rope_parameters", None) or {})], sort_keys=True)


def _rope(parameters: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: _rope(value) for name, value in parameters.items() if isinstance(value, Mapping)}
    own = {name: value for name, value in parameters.items() if name in _ROPE and value not in (None, "default")}
    return {name: value for name, value in found.items() if value} | {name: _same(own[name]) for name in own}


def _same(value: Any) -> Any:
    """Normalise a value: 10000 equals 10000.0, and numbers equal their single-precision values in a GGUF file."""
    if isinstance(value, list | tuple):
        return [_same(item) for item in value]
    return f"{value:.6g}" if isinstance(value, int | float) else value
