"""What to do when a prompt is longer than the model's window. Never silent: what was left out is returned."""

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

_BORDER = 4  # tokens by which what follows the documents may change with the last of them


class Length(Protocol):
    """How long an answer may become; a `Sampling` is one."""

    @property
    def max_new_tokens(self) -> int:
        """Tokens, at most."""
        ...


class Asked(Protocol):
    """What a prompt is built from, but for the documents; a `Request` is one, of which this room knows nothing else."""

    @property
    def messages(self) -> Sequence[Message]:
        """The conversation."""
        ...

    @property
    def tools(self) -> Sequence[Mapping[str, object]]:
        """What the model may call."""
        ...

    @property
    def query(self) -> str | None:
        """What the documents are judged by, where that is not the last message."""
        ...

    @property
    def overflow(self) -> Literal["error", "drop", "truncate"]:
        """What to do if the prompt is too long."""
        ...

    @property
    def sampling(self) -> Length:
        """How long the answer may become."""
        ...


@dataclass(frozen=True)
class Fitted:
    """A prompt that fits, and what had to go for it."""

    prompt: Prompt
    dropped: tuple[Document, ...] = ()
    truncated: tuple[Document, ...] = ()


def fit(builder: PromptBuilder, request: Asked, documents: tuple[Document, ...], window: int) -> Fitted:
    """Build the request's prompt so that it leaves room for an answer in a window of `window` tokens.

    "drop" leaves out whole documents, the last (lowest-ranked) first; "truncate" cuts the end of the last one instead,
    and leaves it out only where none of it fits.

    An answer is promised an eighth of the window, or its `max_new_tokens` if they are fewer.

    Raises:
        PromptTooLongError: it does not fit, and the request does not allow to leave anything out, or that is not
        enough.
    """
    limit = window - min(request.sampling.max_new_tokens, max(1, window // 8))
    # What is too long by far is not read to its end: a million characters would hold up every other request.
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
                _message(len(prompt.ids), limit, window, len(kept), more=more), tokens=len(prompt.ids), limit=limit
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
    """How many of the last documents cannot stay, besides one more: thousands are not left out one by one."""
    ends = list(accumulate((end for _, end in prompt.spans), max))  # an empty document has no place of its own
    if not ends or any(0 < end < before for (_, end), before in zip(prompt.spans, ends, strict=True)):
        return 0  # the template shows them in an order of its own
    count = len(ends)
    while count > 1 and ends[-1] - ends[count - 2] + _BORDER < excess:
        count -= 1
    return len(ends) - count


def _message(tokens: int, limit: int, window: int, documents: int, *, more: bool) -> str:
    way_out = (
        'pass fewer or shorter documents, or overflow="drop" or "truncate"'
        if documents
        else "shorten the messages, or use a model with a longer window"
    )
    return (
        f"the prompt with its {documents} documents has {'more than ' if more else ''}{tokens} tokens, and {limit} fit "
        f"({window} positions less the room for an answer); {way_out}"
    )
