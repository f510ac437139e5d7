"""vLLM's own LoRA layers on a CPU give the engine's numbers: load, pack, activate and apply, several memories at once.

This runs where vLLM is installed. Its model is only as much of a Llama as has adapters: the FFNs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from memograft.memory.export import export
from memograft.model.adapter import applied, stack
from test_engine import FACTS
from test_export import BASE, FULL, LORA
from test_vllm_plugin import HAS_VLLM

pytestmark = [
    pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed"),
    pytest.mark.filterwarnings("ignore"),  # vLLM's own
]
RANK = 32


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Any]:
    """vLLM's configuration for one process on the CPU."""
    from vllm import distributed
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.config.lora import LoRAConfig

    config = VllmConfig()
    config.device_config.device = torch.device("cpu")
    config.lora_config = LoRAConfig(max_lora_rank=RANK, max_loras=3, lora_dtype=torch.float32)
    with set_current_vllm_config(config):
        distributed.init_distributed_environment(1, 0, f"file://{tmp_path}/meeting", 0, "gloo")
        distributed.initialize_model_parallel(1, 1)
        yield config
        distributed.destroy_model_parallel()
        distributed.destroy_distributed_environment()


def served(theirs: Any) -> nn.Module:
    """The FFNs of a Llama of transformers as a model of vLLM."""
    from vllm.model_executor.models.interfaces import SupportsLoRA
    from vllm.model_executor.models.llama import LlamaForCausalLM, LlamaMLP

    class Model(nn.Module, SupportsLoRA):
        packed_modules_mapping = LlamaForCausalLM.packed_modules_mapping
        embedding_modules: dict[str, str] = {}  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__()
            self.config, self.model = theirs.config, nn.Module()
            self.model.layers = nn.ModuleList()
            for n, layer in enumerate(theirs.model.layers):
                ffn = LlamaMLP(theirs.config.hidden_size, theirs.config.intermediate_size, "silu", prefix=f"{n}.mlp")
                gate_up = torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight])
                ffn.gate_up_proj.weight.data.copy_(gate_up.data)
                ffn.down_proj.weight.data.copy_(layer.mlp.down_proj.weight.data)
                for linear in (ffn.gate_up_proj, ffn.down_proj):
                    linear.quant_method.process_weights_after_loading(linear)
                self.model.layers.append(nn.ModuleDict({"mlp": ffn}))

    return Model()


def test_rows_with_different_memories(make_engine: Any, settings: Any, tmp_path: Path) -> None:
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.model_manager import create_lora_manager
    from vllm.lora.peft_helper import PEFTHelper

    engine = make_engine("llama")
    model = served(engine.model)
    lora = settings.lora_config
    manager = create_lora_manager(
        model,
        max_num_seqs=8,
        max_num_batched_tokens=64,
        vocab_size=engine.model.config.vocab_size,
        lora_config=lora,
        vllm_config=settings,
        device=torch.device("cpu"),
    )
    handles = [None, engine.memorize(FACTS, LORA), engine.memorize(FACTS[:1], FULL)]
    for n, handle in enumerate(handles):
        if handle is not None:
            folder = str(export(handle.save(tmp_path / str(n)), tmp_path / "out", base_model=BASE).folder)
            helper = PEFTHelper.from_local_dir(folder, 256)
            helper.validate_legal(lora)
            expected = {"gate_proj", "up_proj", "down_proj"}
            loaded = LoRAModel.from_local_checkpoint(
                folder, expected, helper, lora_model_id=n, device="cpu", dtype=torch.float32
            )
            manager.add_adapter(loaded)
            manager.activate_adapter(n)
    theirs, ours = model.get_submodule("model.layers.1.mlp"), engine.model.model.layers[1].mlp
    x = torch.randn(5, engine.model.config.hidden_size)
    for rows in ((0,) * 5, (1,) * 5, (2,) * 5, (1, 2, 0, 2, 1)):
        manager.set_adapter_mapping(LoRAMapping(rows, rows, is_prefill=True))
        adapters = [handle and handle.adapter for handle in (handles[n] for n in rows)]
        with torch.no_grad():
            plain, got = ours(x), theirs(x)
            with applied(engine._backbone, stack(adapters, engine._backbone)):
                wanted = ours(x[:, None])[:, 0]
        assert float((got - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
        assert bool(((got - plain).abs().amax(1) > 0.1).equal(torch.tensor(rows) > 0))
