"""Examples of a datastore: checked, and encoded as token ids with the positions whose next token is stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from memograft.documents import Document, as_documents
from memograft.errors import PromptTooLongError, SettingsError
from memograft.prompt.builder import PromptBuilder
from memograft.prompt.continuation import continuation
from memograft.prompt.messages import Message
from memograft.request import Source

__all__ = ["Example", "Learned", "alike", "as_example", "checked", "encode", "source_line", "turns", "unknown"]

_SHOWN = 60  # characters of a prompt in an error
_AHEAD = 8  # batches that are sorted by length together, to reduce padding


@dataclass(frozen=True)
class Example:
    """One checked example: a conversation and its answer, or a raw text (no messages).

    Attributes:
        source: its id, the answer or raw text, and metadata. The default id is the first 16 hex digits of a SHA-256 of
            the whole example.
        messages: the conversation before the answer.
        documents: the documents of its prompt.
    """

    source: Source
    messages: tuple[Message, ...] = ()
    documents: tuple[Document, ...] = ()

    @property
    def size(self) -> int:
        """Number of characters, to batch examples of similar length."""
        read = [*(str(m.get("content", "")) for m in self.messages), *(d.text for d in self.documents)]
        return len(self.source.text) + sum(map(len, read))


def source_line(source: Source) -> str:
    """The stored form of a source, as one line of JSON."""
    about = {"id": source.id, "text": source.text, "prompt": source.prompt, "metadata": dict(source.metadata)}
    return json.dumps(about, allow_nan=False)


@dataclass(frozen=True)
class Learned:
    """T token ids to run, and the part of them that is learned.

    Attributes:
        ids: all token ids.
        first: index of the first learned token. The state before each learned token is its key.
        position: index of the token at `first` in its answer or text.
    """

    ids: tuple[int, ...]
    first: int
    position: int = 0


def as_example(item: object, number: int) -> Example:
    """Convert one of the accepted forms to an Example.

    (prompt, answer), (messages, answer), (documents, question, answer), a raw text, or a mapping: with `prompt` (or
    `question`, or `messages`), `answer`, and optionally `documents`; or with `text`; and optionally with `id` and
    `metadata`.

    Raises:
        SettingsError: it is none of these.
    """
    where = f"examples[{number}]"
    if isinstance(item, str):
        item = {"text": item}
    elif isinstance(item, tuple | list) and len(item) == 2:
        asked = "prompt" if isinstance(item[0], str) else "messages"
        item = {asked: item[0], "answer": item[1]}
    elif isinstance(item, tuple | list) and len(item) == 3:
        item = dict(zip(("documents", "question", "answer"), item, strict=True))
    if not isinstance(item, Mapping):
        raise SettingsError(
            f"{where} must be (prompt, answer), (messages, answer), (documents, question, answer), a mapping or a "
            f"text, got {type(item).__name__}"
        )
    asked = item.get("prompt", item.get("question"))
    messages = [{"role": "user", "content": asked}] if asked is not None else item.get("messages", ())
    text = item.get("answer") if messages else item.get("text")
    if not isinstance(text, str) or not text.strip():
        raise SettingsError(
            f"{where} needs a text to learn from, got {text!r}; give a prompt and its `answer`, or a raw `text`"
        )
    if isinstance(messages, str) or not all(isinstance(m, Mapping) for m in messages):
        raise SettingsError(f"the messages of {where} must be a list of mappings, got {messages!r}")
    documents, metadata = as_documents(item.get("documents")), item.get("metadata") or {}
    content = [[dict(m) for m in messages], [d.text for d in documents], text]
    try:
        encoded = json.dumps(content, sort_keys=True)
        json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"messages and metadata of {where} must be JSON, but: {error}; convert them") from error
    id = str(item.get("id") or hashlib.sha256(encoded.encode()).hexdigest()[:16])
    prompt = str(messages[-1].get("content", "")) if messages else ""
    return Example(Source(id, text, prompt, dict(metadata)), tuple(dict(m) for m in messages), documents)


def turns(messages: Sequence[Message]) -> list[tuple[list[Message], str]]:
    """Split a conversation into (messages before, answer) for every assistant message with text."""
    return [
        (list(messages[:n]), str(message["content"]))
        for n, message in enumerate(messages)
        if n and message.get("role") == "assistant" and str(message.get("content") or "").strip()
    ]


def encode(
    builder: PromptBuilder, example: Example, ends: Sequence[int], window: int, stride: int | None
) -> list[Learned]:
    """The token sequences of an example: one, or for a raw text one per window.

    Windows over a raw text overlap and start `stride` tokens apart (None: half a window). Every token is learned once,
    and except at the beginning has at least window - stride tokens before it.

    Raises:
        PromptTooLongError: an example with a prompt does not fit the model's window.
    """
    if example.messages:
        prompt, answer = continuation(builder, example.messages, example.documents, example.source.text)
        ids = (*prompt.ids, *answer, *ends[:1])
        if len(ids) > window:
            raise PromptTooLongError(
                f"the example {example.source.id!r} ({_shown(example.source.prompt)}) has {len(ids)} tokens with its "
                f"answer, and {window} fit; cut it",
                tokens=len(ids),
                limit=window,
            )
        return [Learned(ids, len(prompt.ids))]
    bos = builder.tokenizer.bos_token_id
    lead = () if bos is None else (int(bos),)
    ids = (*lead, *builder.plain(example.source.text))
    step = min(stride or window // 2, window - 1)
    found, done = [], max(1, len(lead))
    while done < len(ids):
        end = min(len(ids), window if done <= 1 else done + step)
        start = max(0, end - window)
        found.append(Learned(ids[start:end], done - start, done - len(lead)))
        done = end
    return found


def checked(examples: Iterable[object]) -> Iterable[Example]:
    """Check examples while they are read. A single text is refused, because its characters would be the examples."""
    if isinstance(examples, str | Mapping):
        raise SettingsError(f"`examples` must be a list, got one {type(examples).__name__}; write examples=[...]")
    return (as_example(item, number) for number, item in enumerate(examples))


def unknown(examples: Iterable[Example], known: Iterable[str]) -> Iterator[Example]:
    """The examples whose ids are not known, each id once."""
    seen = set(known)
    for example in examples:
        if example.source.id not in seen:
            seen.add(example.source.id)
            yield example


def alike(examples: Iterator[Example], batch_size: int) -> Iterator[list[Example]]:
    """Batches of examples of similar length, by sorting the examples of several batches.

    An exception of `examples` is raised after all examples before it were returned.
    """
    stopped: Exception | None = None
    while stopped is None:
        ahead: list[Example] = []
        try:
            ahead.extend(islice(examples, _AHEAD * batch_size))  # keeps the items before an error
        except Exception as error:
            stopped = error
        if not ahead:
            break
        ahead.sort(key=lambda example: example.size)
        yield from (ahead[start : start + batch_size] for start in range(0, len(ahead), batch_size))
    if stopped is not None:
        raise stopped


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
