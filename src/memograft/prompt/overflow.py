"""Make a prompt fit the model's window. Documents that are left out or shortened are always reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal, Protocol

from memograft.documents import Document
from memograft.errors import PromptTooLongError
from memograft.prompt.builder import Prompt, PromptBuilder
from memograft.prompt.messages import Message

__all__ = ["Asked", "Fitted", "fit"]

_BORDER = 4  # tokens by which the text after the documents may change if the last is removed


class Length(Protocol):
    """The maximum length of an answer; implemented by `Sampling`."""

    @property
    def max_new_tokens(self) -> int:
        """Maximum number of tokens."""
        ...


class Asked(Protocol):
    """The parts of a request that a prompt is built from, except the documents; implemented by `Request`."""

    @property
    def messages(self) -> Sequence[Message]:
        """The conversation."""
        ...

    @property
    def tools(self) -> Sequence[Mapping[str, object]]:
        """The tools that the model may call."""
        ...

    @property
    def query(self) -> str | None:
        """The text that documents are judged by, if it is not the last message."""
        ...

    @property
    def overflow(self) -> Literal["error", "drop", "truncate"]:
        """What to do if the prompt is too long."""
        ...

    @property
    def sampling(self) -> Length:
        """The maximum length of the answer."""
        ...


@dataclass(frozen=True)
class Fitted:
    """A prompt that fits, and the documents that were left out or shortened for it."""

    prompt: Prompt
    dropped: tuple[Document, ...] = ()
    truncated: tuple[Document, ...] = ()


def fit(builder: PromptBuilder, request: Asked, documents: tuple[Document, ...], window: int, taken: int = 0) -> Fitted:
    """Build the request's prompt so that it leaves room for an answer in a window of `window` tokens.

    Its memory takes `taken` of them. The room is an eighth of the rest, or `max_new_tokens` if that is less. "drop"
    leaves out whole documents, the last (lowest-ranked) first. "truncate" shortens the last document, and leaves it out
    only if nothing of it fits.

    Raises:
        PromptTooLongError: it does not fit, and leaving out documents is not allowed or not enough.
    """
    limit = window - taken - min(request.sampling.max_new_tokens, max(1, (window - taken) // 8))
    # Texts that are far too long are not tokenized completely: a million characters would delay all other requests.
    messages = [_begun(builder, m, 2 * limit) for m in request.messages]
    kept = [replace(d, text=builder.head(d.text, 2 * limit)) for d in documents]
    endless = messages != list(request.messages)
    dropped: list[Document] = []
    truncated: list[Document] = []
    while True:
        prompt = builder.build(messages, kept, request.tools, None if endless else request.query)
        excess = len(prompt.ids) - limit
        if excess <= 0:
            return Fitted(prompt, tuple(reversed(dropped)), tuple(truncated))
        if request.overflow == "error" or not kept:
            more = endless or kept != list(documents[: len(kept)])
            raise PromptTooLongError(
                _message(len(prompt.ids), limit, window, taken, len(kept), more=more),
                tokens=len(prompt.ids),
                limit=limit,
            )
        if surplus := _surely_too_many(prompt, excess):
            dropped += reversed(documents[len(kept) - surplus : len(kept)])
            del kept[-surplus:]
            continue
        last = kept.pop()
        shorter = builder.cut(last.text, excess) if request.overflow == "truncate" else ""
        original = documents[len(kept)]
        if shorter:
            kept.append(replace(last, text=shorter))
            truncated = [original]
        else:
            dropped.append(original)
            truncated = []


def _begun(builder: PromptBuilder, message: Message, tokens: int) -> Message:
    content = message.get("content")
    return {**message, "content": builder.head(content, tokens)} if isinstance(content, str) else message


def _surely_too_many(prompt: Prompt, excess: int) -> int:
    """How many of the last documents certainly do not fit. Removing thousands one by one would be slow."""
    ends = list(accumulate((end for _, end in prompt.spans), max))  # an empty document has no span
    if not ends or any(0 < end < before for (_, end), before in zip(prompt.spans, ends, strict=True)):
        return 0  # the template changes their order
    count = len(ends)
    while count > 1 and ends[-1] - ends[count - 2] + _BORDER < excess:
        count -= 1
    return len(ends) - count


def _message(tokens: int, limit: int, window: int, taken: int, documents: int, *, more: bool) -> str:
    way_out = (
        'pass fewer or shorter documents, or overflow="drop" or "truncate"'
        if documents
        else "shorten the messages, or use a model with a longer window"
    )
    memory = f", {taken} of its memory" if taken else ""
    return (
        f"the prompt with its {documents} documents has {'more than ' if more else ''}{tokens} tokens, and "
        f"{max(0, limit)} fit ({window} positions minus the room for an answer{memory}); {way_out}"
    )
