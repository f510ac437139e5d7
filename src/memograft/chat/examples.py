"""Convert examples for a datastore, in any form that callers use, to mappings that `memograft.Datastore` accepts.

Document, text                       {text, id, metadata}
history of messages                  for each assistant message with text: {messages before it, documents, answer}
(messages, answer)                   {messages, their documents, answer}
(prompt, answer), (documents, question, answer), a mapping
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized

from memograft.chat.conversation import read_conversation
from memograft.chat.documents import Convert, json_like, to_documents
from memograft.documents import Document
from memograft.errors import SettingsError

__all__ = ["Plain", "to_examples"]

# Converts a framework's message to a mapping, prompt to a list of them, and document to a Document; keeps the rest.
Plain = Callable[[object], object]

_FORMS = (
    "a Document, a list of messages, (messages, answer), (prompt, answer), (documents, question, answer), a mapping or "
    "a text"
)


def to_examples(
    examples: object,
    *,
    plain: Plain = lambda item: item,
    convert: Convert | None = None,
    takes_tools: bool = False,
    between: str = "\n",
    forms: str = _FORMS,
) -> Iterable[dict[str, object]]:
    """Examples in the form the core accepts. A list is checked first, an iterator while it is read.

    Args:
        examples: see above. Documents in messages are found as in `read_conversation`.
        plain: see `Plain`; it is called with items, members of lists and tuples, prompts and answers.
        convert: see `to_documents`.
        takes_tools: whether the chat template can show tool calls and their results.
        between: separator between the text parts of one message.
        forms: the accepted forms, for errors.

    Raises:
        SettingsError: an item is not an example, or `examples` is not a list.
    """
    one = isinstance(examples, str | Mapping | Document) or not isinstance(examples, Iterable)
    if one or plain(examples) is not examples:
        raise SettingsError(
            f"`examples` must be a list of examples, got one {type(examples).__name__}; write examples=[...]"
        )
    assert isinstance(examples, Iterable)
    reader = _Reader(plain, convert, takes_tools, between, forms)
    found = (example for number, item in enumerate(examples) for example in reader.read(item, number))
    return list(found) if isinstance(examples, Sized) else found


class _Reader:
    """Reads single items, with the settings of `to_examples`."""

    def __init__(self, plain: Plain, convert: Convert | None, takes_tools: bool, between: str, forms: str) -> None:
        self._plain, self._convert = plain, convert
        self._takes_tools, self._between, self._forms = takes_tools, between, forms

    def read(self, item: object, number: int) -> Iterator[dict[str, object]]:
        """The checked examples of one item."""
        from memograft.rtd.examples import as_example

        try:
            found = self._examples(item)
        except (ValueError, NotImplementedError) as e:  # also raised by frameworks' conversions
            raise SettingsError(f"examples[{number}]: {e}") from e
        for example in found:
            as_example(example, number)  # raises errors with the caller's index
            yield example

    def _examples(self, item: object) -> list[dict[str, object]]:
        given, item = item, self._plain(item)
        if isinstance(item, str):
            return [{"text": item}]
        if isinstance(item, Document):
            return [{"text": item.text, "id": item.id, "metadata": json_like(item.metadata)}]
        if isinstance(item, Mapping) and not _is_message(item):
            return [self._mapping(item)]
        if isinstance(item, tuple | list):
            members = [self._plain(member) for member in item]
            if members and all(map(_is_message, members)):
                return self._turns([m for m in members if isinstance(m, Mapping)])
            if len(members) == 2:
                return [self._asked(members[0], None) | {"answer": _answer(members[1])}]
            if len(members) == 3:
                return [self._asked(members[1], members[0]) | {"answer": _answer(members[2])}]
        many = isinstance(item, tuple | list)
        kind = f"{type(given).__name__} of {len(item)}" if isinstance(item, tuple | list) else type(given).__name__
        hint = "write messages in a list of their own" if many else "a conversation is one example: write [[...]]"
        raise SettingsError(f"an example must be {self._forms}, got {kind}; {hint}")

    def _turns(self, history: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
        """An example for every assistant message that has text and something before it."""
        turns = []
        for n, message in enumerate(history):
            answer = _answer(message)
            if n and message.get("role") in ("assistant", "ai") and isinstance(answer, str) and answer.strip():
                prompt = self._told(history[:n], None)
                if prompt["messages"]:
                    turns.append(prompt | {"answer": answer})
        if not turns:
            roles = ", ".join(str(message.get("role")) for message in history) or "nothing"
            raise SettingsError(
                "a conversation is learned from the assistant's messages that answer something, and there is none with "
                f"text, got {roles}; add the answer, or pass (messages, answer)"
            )
        return turns

    def _mapping(self, item: Mapping[str, object]) -> dict[str, object]:
        """A mapping in the core's form, with a framework's objects converted."""
        example = dict(item)
        if isinstance(example.get("page_content"), str):
            example["text"] = example.pop("page_content")
        metadata = example.get("metadata")
        if metadata is not None and not isinstance(metadata, Mapping):
            raise SettingsError(f"its `metadata` must be a mapping, got {type(metadata).__name__}; write {{...}}")
        if isinstance(metadata, Mapping):
            example["metadata"] = json_like(metadata)
        if "answer" in example:
            example["answer"] = _answer(self._plain(example["answer"]))
        asked = next((name for name in ("prompt", "question", "messages") if example.get(name) is not None), None)
        if asked is None:
            return example
        prompt = example.pop(asked)
        return example | self._asked(self._plain(prompt), example.pop("documents", None))

    def _asked(self, prompt: object, documents: object) -> dict[str, object]:
        """The part of an example before the answer, in the core's form."""
        if isinstance(prompt, str):
            return {"prompt": prompt, "documents": to_documents(documents, self._convert)}
        if _is_message(prompt):
            prompt = [prompt]
        members = [self._plain(member) for member in prompt] if isinstance(prompt, list | tuple) else []
        messages = [member for member in members if isinstance(member, Mapping)]
        if not messages or len(messages) != len(members):
            raise SettingsError(
                f"what is asked must be a text or a list of messages, got {type(prompt).__name__}; write "
                '[{"role": "user", "content": "..."}]'
            )
        return self._told(messages, documents)

    def _told(self, messages: Sequence[Mapping[str, object]], documents: object) -> dict[str, object]:
        told = read_conversation(
            messages,
            to_documents(documents, self._convert) if documents is not None else None,
            takes_tools=self._takes_tools,
            between=self._between,
            convert=self._convert,
        )
        return {"messages": told.messages, "documents": tuple(told.documents)}


def _is_message(item: object) -> bool:
    return isinstance(item, Mapping) and {"role", "content"} <= item.keys()


def _answer(answer: object) -> object:
    """The text of an answer that is a message; other values are returned for the core to check."""
    if not _is_message(answer) or not isinstance(answer, Mapping):
        return answer
    content = answer["content"]
    if not isinstance(content, list | tuple):
        return content
    parts = [part if isinstance(part, str) else part.get("text") for part in content if isinstance(part, str | Mapping)]
    return "".join(part for part in parts if isinstance(part, str))
