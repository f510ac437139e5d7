"""LangChain messages -> an engine's messages and documents. Nothing is guessed, and nothing is dropped silently.

Documents come, in this order, from

    1. `documents=` of the call, or `additional_kwargs["documents"]` of the last human message (both are an error),
    2. content blocks: text-plain, document, search_result,
    3. artifacts of tool messages after the last human turn,
    4. texts between delimiters, where the chat model was given some;

what one channel has brought, the next does not bring again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from memograft.documents import Document
from memograft.errors import SettingsError

from langchain_memograft._documents import DOCUMENT_BLOCKS, from_artifact, from_block, to_documents

__all__ = ["Conversation", "read_conversation"]

_SKIPPED = ("reasoning", "thinking", "tool_call", "tool_use", "tool_call_chunk")  # an assistant's, kept elsewhere
_MERGED = ("system", "user", "assistant")


@dataclass
class Conversation:
    """What is asked: messages as dicts of role and content, and the documents to answer from."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    documents: list[Document] = field(default_factory=list)

    def add_documents(self, documents: Iterable[Document]) -> None:
        """Add those that are not there yet."""
        known = {(d.id, d.text) for d in self.documents}
        for document in documents:
            if (document.id, document.text) not in known:
                known.add((document.id, document.text))
                self.documents.append(document)

    def add_message(self, message: dict[str, Any]) -> None:
        """Add a message; two in a row of one role become one, since many chat templates refuse them."""
        last = self.messages[-1] if self.messages else {}
        plain = not last.get("tool_calls") and not message.get("tool_calls")
        if plain and message["role"] in _MERGED and last.get("role") == message["role"]:
            last["content"] = "\n\n".join(filter(None, (last["content"], message["content"])))
        else:
            self.messages.append(message)


def read_conversation(
    messages: Sequence[BaseMessage],
    documents: Iterable[Any] | None = None,
    *,
    takes_tools: bool = False,
    delimiters: tuple[str, str] | None = None,
) -> Conversation:
    """Take a conversation apart.

    Args:
        messages: of any kind that has text.
        documents: of the call; None if it has none.
        takes_tools: whether the chat template can show calls of tools and their results. If it cannot, tools that
            return Documents as artifacts are left out with their calls, as the documents say it all.
        delimiters: what stands around documents in the system and last human messages, and goes with them.

    Raises:
        SettingsError: something that the model cannot be told.
    """
    human = max((n for n, m in enumerate(messages) if isinstance(m, HumanMessage)), default=-1)
    attached = messages[human].additional_kwargs.get("documents") if human >= 0 else None
    if documents is not None and attached is not None:
        raise SettingsError(
            "documents came both as `documents=` and in `additional_kwargs` of the last human message; pass them once"
        )
    told = Conversation(documents=list(to_documents(attached if documents is None else documents)))
    texts = [_text_of(message, n, told) for n, message in enumerate(messages)]
    for message in messages[human + 1 :]:
        if isinstance(message, ToolMessage):
            told.add_documents(from_artifact(message.artifact))
    if delimiters is not None:
        for n, message in enumerate(messages):
            if n == human or isinstance(message, SystemMessage):
                texts[n], cut = _cut_out(texts[n], delimiters, n)
                told.add_documents(map(Document, cut))
    left_out = set() if takes_tools else _retrievals(messages)
    for n, (message, text) in enumerate(zip(messages, texts, strict=True)):
        if (plain := _plain(message, text, n, left_out, takes_tools)) is not None:
            told.add_message(plain)
    return told


def _text_of(message: BaseMessage, position: int, told: Conversation) -> str:
    """The message's text; its document blocks are added to the documents."""
    if isinstance(message.content, str):
        return message.content
    parts = []
    for number, block in enumerate(message.content):
        where = f"messages[{position}].content[{number}]"
        kind = "text" if isinstance(block, str) else block.get("type")
        if isinstance(block, str):
            parts.append(block)
        elif kind == "text" and isinstance(block.get("text"), str):
            parts.append(block["text"])
        elif kind in DOCUMENT_BLOCKS:
            told.add_documents([from_block(block, where)])
        elif not (isinstance(message, AIMessage) and kind in _SKIPPED):
            raise SettingsError(
                f"{where} is a block of type {kind!r}, and a local language model reads text: 'text' blocks, and "
                f"{', '.join(map(repr, DOCUMENT_BLOCKS))} for documents; describe it in words, or leave it out"
            )
    return "".join(parts)


def _cut_out(text: str, delimiters: tuple[str, str], position: int) -> tuple[str, list[str]]:
    """The text without what stands between delimiters, and what did."""
    opening, closing = delimiters
    rest, documents = "", []
    while opening in text:
        before, _, text = text.partition(opening)
        document, closed, text = text.partition(closing)
        if not closed:
            raise SettingsError(
                f"messages[{position}] opens a context with {opening!r} and does not close it with {closing!r}; close "
                "it, or set other `context_delimiters`"
            )
        rest += before
        if document.strip():
            documents.append(document.strip())
    return (rest + text).strip() if documents else rest + text, documents


def _retrievals(messages: Sequence[BaseMessage]) -> set[str]:
    """Ids of the tool calls that returned documents as their artifact, or would have, had there been any."""
    return {
        m.tool_call_id
        for m in messages
        if isinstance(m, ToolMessage) and (from_artifact(m.artifact) or m.artifact in ([], ()))
    }


def _plain(
    message: BaseMessage, text: str, position: int, left_out: set[str], takes_tools: bool
) -> dict[str, Any] | None:
    """The message as the chat template gets it; None if it is left out."""
    named = {"name": message.name} if message.name else {}
    if isinstance(message, HumanMessage):
        return {"role": "user", "content": text, **named}
    if isinstance(message, SystemMessage):
        return {"role": "system", "content": text, **named}
    if isinstance(message, ChatMessage):
        return {"role": {"human": "user", "ai": "assistant"}.get(message.role, message.role), "content": text}
    if isinstance(message, ToolMessage):
        if message.tool_call_id in left_out:
            return None
        if not takes_tools:
            raise SettingsError(
                f"messages[{position}] is the result of a tool, for which the model's chat template has no place; use "
                "a model whose template has one, or let the tool return its documents as artifact "
                '(@tool(response_format="content_and_artifact"))'
            )
        return {"role": "tool", "content": text, "tool_call_id": message.tool_call_id, **named}
    if isinstance(message, AIMessage):
        calls = [_call(c) for c in message.tool_calls if c["id"] not in left_out]
        if calls and not takes_tools:
            raise SettingsError(
                f"messages[{position}] calls the tool {calls[0]['function']['name']!r}, for which the model's chat "
                "template has no place, and no documents came of it; use a model whose template has one, or leave the "
                "call out"
            )
        if message.tool_calls and not calls and not text:
            return None
        return {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {}), **named}
    raise SettingsError(
        f"messages[{position}] is a {type(message).__name__}, which no chat template knows; use system, human, AI and "
        "tool messages"
    )


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "function",
        "id": call["id"] or "",
        "function": {"name": call["name"], "arguments": call["args"]},
    }
