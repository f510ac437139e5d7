"""Bad input to the chat model: LangChain's own kinds of error, which are Memograft's too, or a clean result."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.exceptions import (
    ContextOverflowError,
    ModelError,
    ModelInvalidRequestError,
    ModelNotFoundError,
    ModelTimeoutError,
)
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnablePassthrough
from memograft import Engine, FastMem, errors
from pydantic import ValidationError

from langchain_memograft import ChatMemograft
from langchain_memograft._errors import translated, translated_loading
from pages import KNOWN, PAGE, QUESTION


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (errors.PromptTooLongError("long", tokens=9, limit=8), ContextOverflowError),
        (errors.RequestTimeoutError("late"), ModelTimeoutError),
        (errors.EngineClosedError("closed"), ModelError),
        (errors.SettingsError("wrong"), ModelInvalidRequestError),
        (errors.EmptyPromptError("empty"), ModelInvalidRequestError),
        (errors.UnsupportedModelError("odd"), ModelInvalidRequestError),
        (errors.MemoryFormatError("damaged"), ModelInvalidRequestError),
    ],
)
def test_errors_are_of_both_families(raised: Exception, expected: type[ModelError]) -> None:
    with pytest.raises(expected) as caught, translated():
        raise raised
    assert isinstance(caught.value, type(raised))
    assert str(caught.value) == str(raised)
    assert caught.value.__cause__ is raised
    with pytest.raises(type(caught.value)) as again, translated():
        raise caught.value
    assert again.value is caught.value


def test_other_errors_pass_untouched() -> None:
    for error in (errors.MissingExtraError("pip install"), errors.RequestCancelledError("gone"), KeyError("x")):
        with pytest.raises(type(error)) as caught, translated():
            raise error
        assert caught.value is error


def test_what_is_worth_a_retry() -> None:
    for raised, retryable in ((errors.RequestTimeoutError("late"), True), (errors.EngineClosedError("closed"), False)):
        with pytest.raises(ModelError) as caught, translated():
            raise raised
        assert caught.value.is_retryable is retryable


def test_models_that_are_not_there(tmp_path: Any) -> None:
    with pytest.raises(ModelNotFoundError, match=r"the model '.*nothing' cannot be loaded: .*; pass a folder"):
        ChatMemograft(model=str(tmp_path / "nothing")).invoke(QUESTION)
    with pytest.raises(OSError, match="disk"), translated_loading("x"):
        raise OSError("disk")


def test_arguments_nobody_knows_are_refused_by_name(chat: ChatMemograft) -> None:
    with pytest.raises(ValidationError, match=r"has no 'temprature' \(did you mean 'temperature'\?\); there"):
        ChatMemograft(model="tiny", temprature=1)
    with pytest.raises(ValidationError, match=r"has no 'organization'; there are: .*max_tokens, .*model, model_kwargs"):
        ChatMemograft(model="tiny", organization="x")
    for call in (chat.invoke, lambda *a, **k: list(chat.stream(*a, **k))):
        with pytest.raises(ModelInvalidRequestError, match=r"a call of ChatMemograft has no 'docs' .*documents"):
            call(QUESTION, docs=[PAGE])
    assert chat.bind_tools([], parallel_tool_calls=False).invoke(QUESTION).text == KNOWN


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": -1}, "`temperature` must be 0"),
        ({"temperature": "hot"}, r"`temperature` must be 0 \(greedy\) or more, got 'hot'"),
        ({"max_tokens": 0}, "`max_new_tokens`|`max_tokens` must be a whole number"),
        ({"top_p": 2.0}, "`top_p` must be above 0"),
        ({"seed": 1.5}, "`seed` must be a whole number"),
        ({"overflow": "crop"}, '`overflow` must be "error", "drop" or "truncate"'),
        ({"timeout": -1}, "`timeout` must be a positive number"),
        (
            {"memory": 3},
            r"`memory` must be FastMem\(...\), a handle of memorize_documents, or None .*, got int 3; a",
        ),
        ({"memory": "atlas"}, "`memory` must be .*a memory's name goes into `memory_id`"),
        (
            {"memory_id": "x"},
            r"`memory_id` must name a memory of memorize_documents, got 'x', and there are \[\]; m",
        ),
        ({"memory_id": "x", "memory": FastMem()}, "`memory` and `memory_id` were both given"),
        ({"model": 3}, "`model` must be the name or folder of a model, got 3; use from_engine"),
        ({"documents": PAGE}, "`documents` must be a list of documents, got one str; write documents="),
        ({"documents": [3]}, r"documents\[0\] must be a LangChain Document"),
        ({"top_logprobs": 2}, "`top_logprobs` stands beside `logprobs`, got 2 without it; pass logprobs=True too"),
        ({"logprobs": True, "top_logprobs": 21}, "`logprobs` must be 0 to 20"),
    ],
)
def test_values_that_can_never_work(chat: ChatMemograft, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelInvalidRequestError, match=message):
        chat.invoke(QUESTION, **given)


def test_fields_that_can_never_work() -> None:
    with pytest.raises(ValidationError, match=r"`memory` must be FastMem\(...\)"):
        ChatMemograft(model="tiny", memory=3)
    with pytest.raises(ValidationError, match=r"`engine` must be a memograft\.Engine, got str; write Engine"):
        ChatMemograft(engine="tiny")
    with pytest.raises(ValidationError, match="`context_delimiters` must be two strings that are not empty"):
        ChatMemograft(model="tiny", context_delimiters=("<c>", ""))
    with pytest.raises(ValidationError, match="model"):
        ChatMemograft()


def test_messages_in_odd_orders(chat: ChatMemograft) -> None:
    assert chat.invoke([SystemMessage("Be brief."), SystemMessage("Be true."), HumanMessage(QUESTION)]).text
    assert chat.invoke([HumanMessage("Hello."), HumanMessage(QUESTION), AIMessage("Yes?"), AIMessage("Well?")]).text
    assert chat.invoke([SystemMessage("Be brief.")]).text
    with pytest.raises(ModelInvalidRequestError, match="a request needs a `question` or at least one message"):
        chat.invoke([])
    with pytest.raises(ModelInvalidRequestError, match=r"messages\[0\]\.content\[0\] is an image \('image_url'\)"):
        chat.invoke([HumanMessage([{"type": "image_url", "image_url": {"url": "https://x.y/z.png"}}])])
    assert chat.invoke([HumanMessage(QUESTION), ToolMessage("4", tool_call_id="1")]).text
    asked = HumanMessage(QUESTION, additional_kwargs={"documents": [PAGE]})
    with pytest.raises(ModelInvalidRequestError, match=r'in `additional_kwargs\["documents"\]` of the last hu'):
        chat.invoke([asked], documents=[PAGE])


def test_empty_documents_change_nothing(chat: ChatMemograft) -> None:
    assert chat.invoke(QUESTION, documents=[]).text == KNOWN
    assert chat.invoke(QUESTION, documents=["", Document(" \n")]).text
    assert chat.invoke(QUESTION, documents=["", PAGE]).text == PAGE
    with pytest.raises(ModelInvalidRequestError, match="`documents` must hold at least one document to memorize"):
        chat.memorize_documents([])


def test_ten_thousand_documents(chat: ChatMemograft) -> None:
    documents = [Document(PAGE, id="p"), *(Document(f"Page {n} is about fish.", id=str(n)) for n in range(9_999))]
    with pytest.raises(ContextOverflowError, match=r"the prompt with its 10000 documents has \d+ tokens, and \d+ fit"):
        chat.invoke(QUESTION, documents=documents)
    few = chat.invoke(QUESTION, documents=documents, overflow="drop").response_metadata["memograft"]
    assert few["documents"][0] == "p"
    assert few["dropped"][-1] == "9998"
    assert len(few["documents"]) + len(few["dropped"]) == 10_000


def test_a_document_longer_than_the_window(chat: ChatMemograft) -> None:
    long = Document(PAGE + " The sea is blue." * 400, id="l")
    with pytest.raises(ContextOverflowError) as caught:
        chat.invoke(QUESTION, documents=[long])
    assert caught.value.tokens > caught.value.limit  # type: ignore[attr-defined]
    assert 'overflow="drop" or "truncate"' in str(caught.value)
    cut = chat.invoke(QUESTION, documents=[long], overflow="truncate")
    assert cut.response_metadata["memograft"]["truncated"] == ["l"]
    dropped = chat.invoke(QUESTION, documents=[long], overflow="drop")
    assert dropped.response_metadata["memograft"]["dropped"] == ["l"]
    with pytest.raises(ContextOverflowError):
        chat.memorize_documents([long])


def test_a_closed_engine() -> None:
    engine = Engine.from_pretrained("tiny")
    given = ChatMemograft.from_engine(engine)
    engine.close()
    for call in (given.invoke, lambda q: list(given.stream(q))):
        with pytest.raises(ModelError, match="the engine is closed and takes no requests; make a new one") as caught:
            call(QUESTION)
        assert isinstance(caught.value, errors.EngineClosedError)
    named = ChatMemograft(model="tiny", model_kwargs={"max_batch": 3}, max_tokens=24)
    named.invoke(QUESTION)
    named._engine_for().close()
    assert named.invoke(QUESTION).text == KNOWN  # by its name it is found anew


def test_time_that_is_up(chat: ChatMemograft) -> None:
    with pytest.raises(ModelTimeoutError, match="the request's `timeout` passed; allow more time or fewer `max_tok"):
        chat.invoke(QUESTION, timeout=1e-4, max_retries=2)
    with pytest.raises(TimeoutError):
        list(chat.stream(QUESTION, timeout=1e-4))


def test_metadata_that_is_no_json(chat: ChatMemograft) -> None:
    page = Document(PAGE, metadata={"loader": object(), "seen": {1, 2}})
    assert chat.invoke(QUESTION, documents=[page]).text == PAGE
    assert chat.memorize_documents([page]).documents[0].metadata["seen"] == "{1, 2}"


class Broken(BaseRetriever):
    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        raise RuntimeError("the index is gone")


def test_a_retriever_that_raises(chat: ChatMemograft) -> None:
    chain = RunnablePassthrough.assign(documents=lambda x: Broken().invoke(x["q"])) | (
        lambda x: chat.invoke(x["q"], documents=x["documents"])
    )
    with pytest.raises(RuntimeError, match="the index is gone"):
        chain.invoke({"q": QUESTION})
    assert chat.invoke(QUESTION).text == KNOWN


def test_a_memory_of_another_model(chat: ChatMemograft) -> None:
    from families import build
    from tokenizers_ import make

    with Engine(build("llama"), make("bpe")) as engine:
        other = ChatMemograft.from_engine(engine, memory=FastMem(relevance=None), max_tokens=3)
        handle = other.memorize_documents([PAGE])
        assert other.with_memory(handle).invoke("Who?").response_metadata["memograft"]["memory_id"] == handle.id
    with pytest.raises(ModelInvalidRequestError, match=f"memory {handle.id} was made for another model"):
        chat.invoke(QUESTION, memory=handle)
