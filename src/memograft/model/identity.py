"""What a model's configuration says about its outputs that no weight shows: its architecture and its rotary positions.

Only what a checkpoint states itself, whatever transformers fills in later: an allowlist, in one spelling. So neither
the version, the path, the dtype, quantisation, the attention's implementation nor the cache changes it. A partial
rotation and the window it was trained on are left out, which some versions derive and others write down.
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
    """JSON of the text model's type and rotary parameters, those of each type of layer where they differ."""
    text = config.get_text_config()
    return json.dumps([text.model_type, _rope(getattr(text, "rope_parameters", None) or {})], sort_keys=True)


def _rope(parameters: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: _rope(value) for name, value in parameters.items() if isinstance(value, Mapping)}
    own = {name: value for name, value in parameters.items() if name in _ROPE and value not in (None, "default")}
    return {name: value for name, value in found.items() if value} | {name: _same(own[name]) for name in own}


def _same(value: Any) -> Any:
    """10000 and 10000.0 are one number, and so is what a GGUF file has of it in single precision."""
    if isinstance(value, list | tuple):
        return [_same(item) for item in value]
    return f"{value:.6g}" if isinstance(value, int | float) else value
