"""A trunk quantised by bitsandbytes and loaded as usual; this also runs on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from families import build
from memograft import Engine, FastMem, Sampling
from memograft.errors import UnsupportedModelError
from memograft.memory.fastmem.loss import Objective
from memograft.memory.fastmem.train import _LoRA
from memograft.model import gradients
from memograft.model.backbone import Backbone
from memograft.model.base_logits import base_logits
from memograft.model.loading import load
from test_fastmem import context
from tokenizers_ import make

PAGE = "The capital of France is Paris."
MUSEUM = "The Harbour Museum in Lindau opens at ten and closes at six. A ticket costs 7 euros, children pay nothing."
QUESTION = "How much does a ticket cost?"
QUANTISED = {
    "4 bit": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32),
    "4 bit, nested": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "8 bit": BitsAndBytesConfig(load_in_8bit=True),
}
# The 4-bit kernel for CPUs with avx512_bf16 takes blocks of 64 inputs by 32 outputs.
WIDE = {"hidden_size": 64, "intermediate_size": 128}
# bitsandbytes warns on every call that it computes in float16.
pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")


@pytest.fixture(scope="module", params=list(QUANTISED))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("llama")
    build("llama", changes=WIDE).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=QUANTISED[request.param], device_map="cpu")
    assert not model.model.layers[-1].mlp.down_proj.weight.is_floating_point()
    return model


@pytest.fixture(scope="module")
def engine(model: Any) -> Engine:
    return Engine(model, make("bpe"))


def test_a_lora_memorizes_on_a_quantised_model(engine: Engine, tmp_path: Path) -> None:
    sampling = Sampling(max_new_tokens=8)
    plain = engine.answer("Who?", [PAGE], sampling=sampling)
    settings = FastMem(learning_rate=2e-2, target_kl=None, max_kl=10.0, relevance=None)
    memorized = engine.answer("Who?", [PAGE], memory=settings, sampling=sampling)
    assert memorized.memory is not None
    assert not memorized.memory.rolled_back
    assert memorized.memory.loss_after < memorized.memory.loss_before - 1
    assert engine.answer("Who?", [PAGE], sampling=sampling).token_ids == plain.token_ids

    handle = engine.memorize([PAGE], settings)
    handle.save(tmp_path / "memory")
    loaded = engine.load_memory(tmp_path / "memory")
    answers = [engine.answer("Who?", memory=m, sampling=sampling).token_ids for m in (handle, loaded)]
    assert answers[0] == answers[1]


def dense(parts: Backbone) -> Backbone:
    """The same model with plain weights in its last FFN: each quantised map's output for the identity."""
    copy = build("llama", changes=WIDE)
    with torch.no_grad():
        for name, module in parts.projections.items():
            copy.get_submodule(name).weight.copy_(module(torch.eye(module.in_features)).T)
    return Backbone.of(copy)


def test_gradients_are_those_of_the_weights_that_the_kernels_stand_for(engine: Engine) -> None:
    """Also the gradients of gate and up, which pass through the frozen down projection."""
    parts = Backbone.of(engine.model)
    data = context(parts)
    found = []
    for one in (parts, dense(parts)):
        objective = Objective(one, data, 0.1, None)
        lora = _LoRA(one, FastMem(), data, [objective.x])
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for leaf in lora.leaves:
                leaf.normal_(0, 0.05, generator=generator)
        with lora.active():
            found.append(torch.autograd.grad(objective.loss()[0].sum(), lora.leaves))
    for ours, real in zip(*found, strict=True):
        assert torch.cosine_similarity(ours.flatten(), real.flatten(), 0) > 0.98
        assert float(ours.norm()) == pytest.approx(float(real.norm()), rel=0.1)


def test_a_map_without_gradient_is_told_from_one_that_has_it() -> None:
    class Deaf(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.detach())

    class Halved(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x / 2 + x.detach() / 2)

    for kind, right in ((torch.nn.Linear, True), (Deaf, False), (Halved, False)):
        module = kind(6, 4).requires_grad_(False)
        assert gradients._has_right_gradient(module, torch.float32) == right
        torch.testing.assert_close(gradients._weights(module, torch.float32), module.weight)


def test_the_base_model_is_heard_beside_the_memory(engine: Engine) -> None:
    parts, ids = Backbone.of(engine.model), torch.arange(3, 15).reshape(2, 6)
    with torch.inference_mode():
        plain = engine.model(input_ids=ids).logits
        with base_logits(parts, 2, [1]) as seen:
            engine.model(input_ids=ids)
    assert (seen.logits - plain[1:]).abs().max() / plain.abs().max() < 1e-3


def test_training_the_quantised_weights_themselves_is_refused(engine: Engine) -> None:
    with pytest.raises(UnsupportedModelError, match=r'quantised.*use adapter="lora"'):
        engine.answer("Who?", [PAGE], memory=FastMem.paper())


def test_smollm2_in_4_bits_memorizes_like_its_dequantised_twin(smollm2: Engine) -> None:
    """`smollm2` requires the package; both models are loaded from it in the usual way."""
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    # A model that has not run yet: on some processors the first forward pass packs the weights permanently.
    twin, tokenizer = load("smollm2", quantization_config=config)
    reports = []
    for engine in (
        Engine.from_pretrained("smollm2", quantization_config=config),
        Engine(twin.dequantize().float().eval(), tokenizer),
    ):
        with engine:
            reports.append(engine.answer(QUESTION, [MUSEUM], memory=FastMem(), sampling=Sampling(1)).memory)
    four, dequantised = reports
    assert four is not None
    assert dequantised is not None
    assert not four.rolled_back
    assert four.loss_after < 0.95 * four.loss_before
    assert four.loss_after == pytest.approx(dequantised.loss_after, rel=0.01)
