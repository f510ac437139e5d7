"""Whatever callers teach a datastore with -> mappings that `memograft.Datastore` learns from.

Document, text                       {text, id, metadata}
history of messages                  for each text of the assistant in it: {messages before it, documents, answer}
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

# A framework's own message -> a mapping, its prompt -> a list of them, its document -> a Document; all else as it is.
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
    """Examples as the core takes them. A list is checked before anything is learned, an iterator as it goes.

    Args:
        examples: see above. Documents in messages are found as `read_conversation` finds them.
        plain: see `Plain`; it is handed items, the members of lists and tuples, and prompts and answers.
        convert: see `to_documents`.
        takes_tools: whether the chat template can show calls of tools and their results.
        between: what joins the text parts of one message.
        forms: what an example may be, for errors.

    Raises:
        SettingsError: an item is no example, or there is no list of them.
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
    """Reads items one by one, with the settings of `to_examples`."""

    def __init__(self, plain: Plain, convert: Convert | None, takes_tools: bool, between: str, forms: str) -> None:
        self._plain, self._convert = plain, convert
        self._takes_tools, self._between, self._forms = takes_tools, between, forms

    def read(self, item: object, number: int) -> Iterator[dict[str, object]]:
        """The examples that one item comes to, checked."""
        from memograft.rtd.examples import as_example

        try:
            found = self._examples(item)
        except (ValueError, NotImplementedError) as e:  # what a framework's own conversions raise, too
            raise SettingsError(f"examples[{number}]: {e}") from e
        for example in found:
            as_example(example, number)  # raises, by the number that the caller knows
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
        """An example for every message of the assistant that has text and something before it."""
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
        """A mapping as the core takes it; only what is a framework's in it is converted."""
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
        """What stands before an answer, as the core takes it."""
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
    """An answer's text, where it is a message; whether it is any is the core's to judge."""
    if not _is_message(answer) or not isinstance(answer, Mapping):
        return answer
    content = answer["content"]
    if not isinstance(content, list | tuple):
        return content
    parts = [part if isinstance(part, str) else part.get("text") for part in content if isinstance(part, str | Mapping)]
    return "".join(part for part in parts if isinstance(part, str))
