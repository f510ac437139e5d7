"""Convert LlamaIndex's chat messages, blocks and tools to OpenAI's form, for `memograft.chat`."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.llms.memograft._citations import is_ours
from memograft import Document
from memograft.errors import SettingsError

__all__ = ["citable", "described", "to_openai"]

_ROLES = {"chatbot": "assistant", "model": "assistant"}
_SILENT = (CachePoint, ThinkingBlock)  # a hint for a hosted cache; chat templates leave out earlier reasoning


def to_openai(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Messages in OpenAI's form; documents are `memograft.Document`s among the parts of their content.

    Raises:
        SettingsError: an item is not a ChatMessage, or the text of a document is not in its block.
    """
    for position, message in enumerate(messages):
        if not isinstance(message, ChatMessage):
            raise SettingsError(
                f"messages[{position}] must be a ChatMessage, got {type(message).__name__}; "
                'write ChatMessage(role="user", content="...")'
            )
    return [_message(message, position) for position, message in enumerate(messages)]


def citable(document: Document) -> CitableBlock:
    """A document as a block of a message."""
    return CitableBlock(title="", source=document.id, content=[TextBlock(text=document.text)])


def described(tools: Sequence[Any]) -> list[Any]:
    """Descriptions of tools in OpenAI's form; an item is a tool of LlamaIndex or such a description.

    Raises:
        SettingsError: an item is neither.
    """
    made: list[Any] = []
    for position, tool in enumerate(tools):
        if hasattr(tool, "metadata") and hasattr(tool.metadata, "to_openai_tool"):
            made.append(tool.metadata.to_openai_tool(skip_length_check=True))
        elif isinstance(tool, Mapping):
            made.append(tool)
        else:
            raise SettingsError(
                f"tools[{position}] must be a tool of LlamaIndex or a description in OpenAI's form, got "
                f"{type(tool).__name__}; wrap a function as FunctionTool.from_defaults(fn)"
            )
    return made


def _message(message: ChatMessage, position: int) -> dict[str, Any]:
    parts: list[Any] = []
    calls: list[dict[str, Any]] = []
    for block in message.blocks:
        if isinstance(block, ToolCallBlock):
            call = {"name": block.tool_name, "arguments": block.tool_kwargs}
            calls.append({"id": block.tool_call_id, "type": "function", "function": call})
        elif not isinstance(block, _SILENT):
            parts += _parts(block, position)
    content = "\n".join(parts) if all(isinstance(part, str) for part in parts) else parts
    made: dict[str, Any] = {"role": _ROLES.get(message.role.value, message.role.value), "content": content}
    if calls:
        made["tool_calls"] = calls
    if made["role"] in ("tool", "function"):
        made |= {key: message.additional_kwargs.get(key) for key in ("tool_call_id", "name")}
    return made


def _parts(block: Any, position: int) -> list[Any]:
    """A block as parts of a message's content. The core refuses parts of unsupported types."""
    if isinstance(block, TextBlock):
        return [block.text]
    if isinstance(block, DocumentBlock):
        title = block.title if block.title != "input_document" else ""  # LlamaIndex's default
        return [Document(_text(block, position), metadata={"title": title} if title else {})]
    if not isinstance(block, CitableBlock | CitationBlock):
        return [{"type": block.block_type}]
    if isinstance(block, CitationBlock) and is_ours(block):
        return []
    inside = block.content if isinstance(block, CitableBlock) else [block.cited_content]
    parts = [part for inner in inside for part in _parts(inner, position)]
    texts = [part.text if isinstance(part, Document) else part for part in parts]
    if unreadable := [part for part in texts if not isinstance(part, str)]:
        return unreadable
    return [Document("\n\n".join(texts), block.source, {"title": block.title} if block.title else {})]


def _text(block: DocumentBlock, position: int) -> str:
    """The text of a document block, from its data or its file; URLs are not fetched."""
    try:
        if isinstance(block.data, bytes):  # in LlamaIndex, base64
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
        f"the document {block.title!r} in messages[{position}] must have text (UTF-8), got "
        f"{block.document_mimetype or 'something else'}{why}; read it with a LlamaIndex reader and pass documents=[...]"
    )
