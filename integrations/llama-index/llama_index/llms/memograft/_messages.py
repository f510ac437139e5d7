"""LlamaIndex's chat messages -> Memograft's: text, documents, tool calls. What cannot be read is refused by name."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_index.core.base.llms.types import (
    AudioBlock,
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)
from llama_index.llms.memograft import _tools
from llama_index.llms.memograft._citations import is_ours
from memograft.documents import Document
from memograft.errors import SettingsError

__all__ = ["citable", "grouped", "to_engine"]

_ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}
_MEDIA: dict[type, str] = {ImageBlock: "an image", AudioBlock: "audio", VideoBlock: "a video"}
_SILENT = (CachePoint, ThinkingBlock)  # a hint to a hosted cache; what templates leave out of earlier turns


def to_engine(messages: Sequence[ChatMessage]) -> tuple[list[dict[str, Any]], list[Document]]:
    """(messages, documents). Neighbours of one role become one message, since many chat templates refuse them.

    Raises:
        SettingsError: a block that no text model can read, or a document whose text is not at hand.
    """
    turns = grouped(messages)
    return [turn for turn, _ in turns], [document for _, found in turns for document in found]


def grouped(messages: Sequence[ChatMessage]) -> list[tuple[dict[str, Any], list[Document]]]:
    """`to_engine`, with each message's own documents."""
    turns: list[tuple[dict[str, Any], list[Document]]] = []
    for position, message in enumerate(messages):
        if not isinstance(message, ChatMessage):
            raise SettingsError(
                f"messages[{position}] must be a ChatMessage, got {type(message).__name__}; "
                'write ChatMessage(role="user", content="...")'
            )
        turn, found = _turn(message, position)
        if turns and _joins(turns[-1][0], turn):
            last, before = turns[-1]
            last["content"] = "\n\n".join(text for text in (last["content"], turn["content"]) if text)
            before += found
        else:
            turns.append((turn, found))
    return turns


def citable(document: Document) -> CitableBlock:
    """A document as a block of a message."""
    return CitableBlock(title="", source=document.id, content=[TextBlock(text=document.text)])


def _joins(before: dict[str, Any], after: dict[str, Any]) -> bool:
    alike = before["role"] == after["role"] and before["role"] != "tool"
    return alike and not before.get("tool_calls") and not after.get("tool_calls")


def _turn(message: ChatMessage, position: int) -> tuple[dict[str, Any], list[Document]]:
    texts: list[str] = []
    documents: list[Document] = []
    calls: list[dict[str, Any]] = []
    for block in message.blocks:
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, ToolCallBlock):
            calls.append(_call(block))
        elif isinstance(block, CitableBlock | CitationBlock | DocumentBlock):
            if not (isinstance(block, CitationBlock) and is_ours(block)):
                documents.append(_document(block, position))
        elif not isinstance(block, _SILENT):
            raise _unreadable(block, position)
    turn: dict[str, Any] = {"role": _ROLES[message.role], "content": "\n".join(texts)}
    if calls:
        turn["tool_calls"] = calls
    if turn["role"] == "tool":
        about = message.additional_kwargs
        turn |= {key: str(about[key]) for key in ("tool_call_id", "name") if about.get(key)}
    return turn, documents


def _call(block: ToolCallBlock) -> dict[str, Any]:
    function = {"name": block.tool_name, "arguments": _tools.arguments(block)}
    call: dict[str, Any] = {"type": "function", "function": function}
    return call | ({"id": block.tool_call_id} if block.tool_call_id else {})


def _document(block: CitableBlock | CitationBlock | DocumentBlock, position: int) -> Document:
    if isinstance(block, DocumentBlock):
        title = block.title if block.title != "input_document" else ""  # LlamaIndex's own filler
        return Document(_text(block, position), metadata={"title": title} if title else {})
    parts = block.content if isinstance(block, CitableBlock) else [block.cited_content]
    texts = []
    for part in parts:
        if isinstance(part, TextBlock):
            texts.append(part.text)
        elif isinstance(part, DocumentBlock):
            texts.append(_text(part, position))
        else:
            raise _unreadable(part, position)
    return Document("\n\n".join(texts), block.source, {"title": block.title} if block.title else {})


def _text(block: DocumentBlock, position: int) -> str:
    """The text of a document block; nothing is fetched, and nothing but text is read."""
    try:
        if isinstance(block.data, bytes):  # LlamaIndex keeps them as base64
            return base64.b64decode(block.data, validate=True).decode()
        if block.data is not None:
            return str(block.resolve_document().read().decode())
        if block.path is not None:
            return Path(block.path).read_text(encoding="utf-8")
    except (ValueError, OSError) as e:
        why = f": {e}"
    else:
        why = f" at {block.url}" if block.url else ""
    raise SettingsError(
        f"the document {block.title!r} in messages[{position}] must hold text (UTF-8), got "
        f"{block.document_mimetype or 'something else'}{why}; read it with a LlamaIndex reader and pass documents=[...]"
    )


def _unreadable(block: Any, position: int) -> SettingsError:
    what = _MEDIA.get(type(block), type(block).__name__)
    return SettingsError(
        f"messages[{position}] must hold text, documents or tool calls, got {what}; Memograft's models read text: "
        "describe it in words, or leave it out"
    )
