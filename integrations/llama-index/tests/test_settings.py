"""Creation, metadata and serialization of the LLM, and the modules that it imports."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.llms import memograft
from llama_index.llms.memograft import Memograft
from memograft import Compacted, FastMem, Gist, Kept, Mac

from conftest import MEMORIZED, PAGE, QUESTION

HERE = Path(memograft.__file__).parent


def test_public_names() -> None:
    assert memograft.__all__ == [
        "Memograft",
        "MemograftEmbedding",
        "MemograftSynthesizer",
        "MemograftVectorStore",
        "__version__",
    ]
    assert set(memograft.__all__) <= set(dir(memograft))
    assert all(getattr(memograft, name) for name in memograft.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        memograft.Nothing  # noqa: B018
    assert issubclass(Memograft, FunctionCallingLLM)
    assert Memograft.class_name() == "Memograft_LLM"


def test_importing_and_making_one_loads_no_model_and_no_torch() -> None:
    code = (
        "import sys\nfrom llama_index.llms.memograft import Memograft, MemograftSynthesizer\n"
        "llm = Memograft(model='no such model', max_tokens=3, datastore='no such folder')\n"
        "llm.to_json(), llm.to_payload()\n"
        "print([m for m in ('torch', 'transformers', 'faiss', 'openai') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_namespaces_belong_to_nobody() -> None:
    assert not (HERE.parent / "__init__.py").exists()
    assert not (HERE.parent.parent / "__init__.py").exists()
    assert (HERE / "py.typed").exists()


def test_metadata_is_the_models(llm: Memograft, random_llm: Memograft) -> None:
    about = random_llm.metadata
    assert (about.context_window, about.num_output) == (1024, 12)
    assert (about.is_chat_model, about.is_function_calling_model) == (True, True)  # any model: calls are constrained
    assert random_llm.model_copy(update={"max_tokens": 900}).metadata.num_output == 128  # an eighth is promised
    assert llm.metadata.model_name == "tiny"
    assert llm.metadata.context_window == 1012  # 512, and the 500 that LlamaIndex puts aside
    assert llm.model_copy(update={"context_window": 300}).metadata.context_window == 300


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"max_new_tokens": 3}, r"Memograft has no 'max_new_tokens' \(did you mean 'max_tokens'\?\); there are: "),
        ({"stop": "x", "stop_sequences": "y"}, "`stop_sequences` is another name of `stop`, got both; pass one"),
    ],
)
def test_settings_that_can_never_work(settings: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Memograft(**settings)


def test_it_takes_the_names_of_chat_memograft() -> None:
    llm = Memograft(model_name="tiny", stop_sequences=["x"], top_logprobs=2)
    assert (llm.model, llm.stop, llm.logprobs) == ("tiny", ["x"], 2)


def test_calls_take_the_names_of_chat_memograft(llm: Memograft) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    assert json.loads(llm.complete("Who?", response_format=wanted).text)["a"] in (True, False)
    with pytest.raises(ValueError, match="`json_schema` and `response_format` both set the answer's form"):
        llm.complete("Who?", response_format=wanted, json_schema=schema)
    framed = f"Answer in one sentence, politely, and in English.\n\n{QUESTION}"
    report = llm.complete(framed, documents=[PAGE], query=QUESTION).additional_kwargs["memograft"]
    assert len(report["memorized"]) == 1
    assert llm.complete("What is the capital of France?", stop_sequences=[" Paris"]).text == "The capital of France is"


def test_it_is_rebuilt_from_what_it_was_serialized_to() -> None:
    llm = Memograft(model="tiny", memory=FastMem(steps=5), max_tokens=7, stop="x")
    data = json.loads(llm.to_json())
    assert data["class_name"] == "Memograft_LLM"
    again = Memograft.from_dict(data)
    assert (again.memory, again.max_tokens, again.stop) == (FastMem(steps=5), 7, ["x"])
    assert pickle.loads(pickle.dumps(llm)).memory == FastMem(steps=5)


def test_other_kinds_are_rebuilt_too() -> None:
    for memory in (Kept(), Compacted(FastMem(steps=5), 4), Gist("somewhere", show=1, refine=3), Mac("bank", 4)):
        again = Memograft.from_dict(json.loads(Memograft(model="tiny", memory=memory).to_json()))
        assert again.memory == memory


def test_a_kept_memory_is_serialized_by_its_id(llm: Memograft) -> None:
    handle = llm.memorize([PAGE])
    assert json.loads(llm.model_copy(update={"memory": handle}).to_json())["memory"] == handle.id


def test_copies_share_the_engine(llm: Memograft) -> None:
    twin = copy.deepcopy(llm.model_copy(update={"memory": llm.memorize([PAGE])}))
    assert twin.engine is llm.engine
    assert twin.complete(QUESTION).text == MEMORIZED
