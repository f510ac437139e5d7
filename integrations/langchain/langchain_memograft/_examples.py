"""What LangChain calls an example, in any of its forms -> mappings that `memograft.Datastore` learns from.

Document                          {text, id, metadata}
history of messages               for each AI message with text: {messages before it, their documents, answer}
(messages, answer)                {messages, their documents, answer}
(prompt, answer), (documents, question, answer), a text, a mapping
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

from langchain_core.documents import Document as LangChainDocument
from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages
from langchain_core.prompt_values import PromptValue
from memograft.documents import Document
from memograft.errors import SettingsError

from langchain_memograft._documents import json_like, to_documents
from langchain_memograft._messages import read_conversation

__all__ = ["to_examples"]


def to_examples(examples: Iterable[Any], *, takes_tools: bool = False) -> Iterable[dict[str, Any]]:
    """Examples as the core takes them. A list is checked before anything is learned, an iterator as it goes.

    Args:
        examples: see above. Documents in messages are found as `read_conversation` finds them.
        takes_tools: whether the chat template can show calls of tools and their results.

    Raises:
        SettingsError: an item is no example, or there is no list of them.
    """
    one = (str, Mapping, Document, LangChainDocument, BaseMessage)
    if isinstance(examples, one) or not isinstance(examples, Iterable):
        raise SettingsError(
            f"`examples` must be a list of examples, got one {type(examples).__name__}; write examples=[...]"
        )
    found = _found(examples, takes_tools)
    return list(found) if isinstance(examples, Sized) else found


def _found(examples: Iterable[Any], takes_tools: bool) -> Iterator[dict[str, Any]]:
    from memograft.rtd.examples import as_example

    for number, item in enumerate(examples):
        try:
            converted = _converted(item, takes_tools)
        except (SettingsError, ValueError, NotImplementedError) as e:  # the latter two of convert_to_messages
            raise SettingsError(f"examples[{number}]: {e}") from e
        for example in converted:
            as_example(example, number)  # raises, by the number that the caller knows
            yield example


def _converted(item: Any, takes_tools: bool) -> list[dict[str, Any]]:
    """The examples that one item comes to."""
    if isinstance(item, str):
        return [{"text": item}]
    if isinstance(item, LangChainDocument | Document):
        (document,) = to_documents([item])
        return [{"text": document.text, "id": document.id, "metadata": dict(document.metadata)}]
    if isinstance(item, Mapping):
        return [_mapping(item, takes_tools)]
    if isinstance(item, tuple | list):
        if item and all(map(_is_message, item)):
            return _turns(convert_to_messages(item), takes_tools)
        if len(item) == 2:
            return [_asked(item[0], None, takes_tools) | {"answer": _text(item[1])}]
        if len(item) == 3:
            return [_asked(item[1], item[0], takes_tools) | {"answer": _text(item[2])}]
    raise SettingsError(
        "an example must be a Document, a list of messages, (messages, answer), (prompt, answer), (documents, "
        f"question, answer), a mapping or a text, got {_named(item)}; a conversation is one example, so write "
        "examples=[[HumanMessage(...), AIMessage(...)]]"
    )


def _turns(history: Sequence[BaseMessage], takes_tools: bool) -> list[dict[str, Any]]:
    """An example for every AI message that has text and something before it."""
    turns = []
    for n, message in enumerate(history):
        if n and isinstance(message, AIMessage) and message.text.strip():
            prompt = _read(history[:n], None, takes_tools)
            if prompt["messages"]:
                turns.append(prompt | {"answer": _text(message)})
    if not turns:
        kinds = ", ".join(message.type for message in history) or "nothing"
        raise SettingsError(
            f"a conversation is learned from the AI messages that answer something, and there is none with text, got "
            f"{kinds}; add the answer as an AIMessage, or pass (messages, answer)"
        )
    return turns


def _mapping(item: Mapping[str, Any], takes_tools: bool) -> dict[str, Any]:
    """A mapping as the core takes it; only what is LangChain's in it is converted."""
    example = dict(item)
    if isinstance(example.get("page_content"), str):
        example["text"] = example.pop("page_content")
    if isinstance(example.get("metadata"), Mapping):
        example["metadata"] = json_like(example["metadata"])
    if isinstance(example.get("answer"), AIMessage):
        example["answer"] = _text(example["answer"])
    asked = next((name for name in ("prompt", "question", "messages") if example.get(name) is not None), None)
    if asked is None:
        return example
    documents = example.pop("documents", None)
    return {k: v for k, v in example.items() if k != asked} | _asked(example[asked], documents, takes_tools)


def _asked(prompt: Any, documents: Any, takes_tools: bool) -> dict[str, Any]:
    """What stands before an answer, as the core takes it."""
    if isinstance(prompt, PromptValue):
        prompt = prompt.to_messages()
    if isinstance(prompt, BaseMessage):
        prompt = [prompt]
    if isinstance(prompt, str):
        return {"prompt": prompt, "documents": to_documents(documents)}
    if not isinstance(prompt, Sequence) or not prompt:
        raise SettingsError(f"what is asked must be a text or a list of messages, got {_named(prompt)}")
    if all(isinstance(message, Mapping) for message in prompt):  # an engine's own form
        return {"messages": list(prompt), "documents": to_documents(documents)}
    return _read(convert_to_messages(prompt), documents, takes_tools)


def _read(messages: Sequence[BaseMessage], documents: Any, takes_tools: bool) -> dict[str, Any]:
    told = read_conversation(messages, documents, takes_tools=takes_tools)
    return {"messages": told.messages, "documents": tuple(told.documents)}


def _text(answer: Any) -> Any:
    """An answer's text; whether it is any is the core's to judge."""
    return str(answer.text) if isinstance(answer, AIMessage) else answer


def _is_message(item: Any) -> bool:
    return isinstance(item, BaseMessage) or (isinstance(item, Mapping) and {"role", "content"} <= item.keys())


def _named(item: Any) -> str:
    return f"{type(item).__name__} of {len(item)}" if isinstance(item, tuple | list) else type(item).__name__
