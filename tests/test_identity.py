"""A model's fingerprint does not depend on how a checkpoint is loaded, and differs if the outputs differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from families import FAMILIES, ROUTED, build
from gguf_files import write
from memograft import Engine
from memograft.memory.handle import fingerprint
from memograft.model.backbone import Backbone
from memograft.model.identity import stated

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def of(model: Any) -> str:
    return fingerprint(Backbone.of(model))


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - ROUTED))
def test_a_checkpoint_is_one_model_however_it_is_loaded(tmp_path: Path, family: str) -> None:
    made = build(family, dtype=torch.bfloat16)
    made.save_pretrained(tmp_path)
    found = {of(made), of(build(family, dtype=torch.bfloat16).float())}
    for options in ({}, {"dtype": torch.float32}, {"dtype": torch.bfloat16, "attn_implementation": "eager"}):
        found.add(of(AutoModelForCausalLM.from_pretrained(tmp_path, **options).eval()))
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"use_cache": False, "transformers_version": "5.18.0", "_name_or_path": "elsewhere", "max_new": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found.add(of(AutoModelForCausalLM.from_pretrained(tmp_path).eval()))
    assert len(found) == 1


def test_the_same_weights_of_another_model_are_another_model() -> None:
    models = [
        build("llama"),
        build("mistral"),
        build("llama", changes={"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
        build("llama", changes={"rope_parameters": LLAMA3}),
        build("llama", changes={"rope_parameters": LLAMA3 | {"factor": 4.0}}),
    ]
    weights = models[0].state_dict()
    for model in models[1:]:
        model.load_state_dict(weights)
    assert len({of(model) for model in models}) == len(models)


def test_the_spelling_of_the_configuration_does_not_count() -> None:
    def llama(**fields: Any) -> str:
        return stated(CONFIG_MAPPING["llama"](**FAMILIES["llama"], **fields))

    same = [llama(rope_parameters={"rope_theta": theta}) for theta in (10000, 10000.0, 10000.0001)]
    assert {*same, llama(), llama(rope_theta=10000)} == {'["llama", {"rope_theta": "10000"}]'}
    assert llama(rope_theta=20000) != llama()
    old = {name: value for name, value in LLAMA3.items() if name not in ("rope_type", "rope_theta")}
    assert llama(rope_scaling=old | {"type": "llama3"}, rope_theta=500000) == llama(rope_parameters=LLAMA3)


def test_each_type_of_layer_has_its_positions() -> None:
    def gemma(**theta: float) -> str:
        positions = {f"{layer}_attention": {"rope_type": "default", "rope_theta": t} for layer, t in theta.items()}
        return stated(CONFIG_MAPPING["gemma3_text"](**FAMILIES["gemma3_text"], rope_parameters=positions))

    usual = gemma(full=1e6, sliding=1e4)
    assert '"full_attention": {"rope_theta": "1e+06"}' in usual
    assert len({usual, gemma(full=1e6, sliding=1e5), gemma(full=1e5, sliding=1e4)}) == 3
    assert stated(CONFIG_MAPPING["gpt2"]()) == '["gpt2", {}]'


def test_a_gguf_file_is_the_model_that_it_was_written_from(
    tmp_path: Path, models: Any, tokenizer: Any, make_engine: Any
) -> None:
    file = write(tmp_path / "model.gguf", models("llama"), tokenizer)
    with Engine.from_pretrained(file, dtype=torch.float32) as engine:
        assert engine.fingerprint == make_engine("llama").fingerprint
