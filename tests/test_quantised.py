"""A trunk quantised by bitsandbytes, loaded the way users load it; it runs on a CPU too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from families import build
from memograft import Engine, FastMem, Sampling
from memograft._beside import beside
from memograft.backbone import Backbone
from memograft.errors import UnsupportedModelError
from tokenizers_ import make

PAGE = "The capital of France is Paris."
QUANTISED = {
    "4 bit": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32),
    "8 bit": BitsAndBytesConfig(load_in_8bit=True),
}
# bitsandbytes says on every call that it computes in float16.
pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")


@pytest.fixture(scope="module", params=list(QUANTISED))
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("llama")
    build("llama").save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=QUANTISED[request.param], device_map="cpu")
    assert not model.model.layers[-1].mlp.down_proj.weight.is_floating_point()
    return Engine(model, make("bpe"))


def test_a_lora_memorizes_on_a_quantised_model(engine: Engine, tmp_path: Path) -> None:
    sampling = Sampling(max_new_tokens=8)
    plain = engine.answer("Who?", [PAGE], sampling=sampling)
    settings = FastMem(learning_rate=2e-2, relevance=None)
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


def test_the_base_model_is_heard_beside_the_memory(engine: Engine) -> None:
    parts, ids = Backbone.of(engine.model), torch.arange(3, 15).reshape(2, 6)
    with torch.inference_mode():
        plain = engine.model(input_ids=ids).logits
        with beside(parts, 2, [1]) as seen:
            engine.model(input_ids=ids)
    assert (seen.logits - plain[1:]).abs().max() / plain.abs().max() < 1e-3


def test_training_the_quantised_weights_themselves_is_refused(engine: Engine) -> None:
    with pytest.raises(UnsupportedModelError, match=r'quantised.*use adapter="lora"'):
        engine.answer("Who?", [PAGE], memory=FastMem.paper())
