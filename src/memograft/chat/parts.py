"""Read a message's content: text, None, or a list of parts in the forms of several chat APIs."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

from memograft.documents import Document
from memograft.errors import SettingsError

__all__ = ["DOCUMENT_PARTS", "document_of", "text_of"]

DOCUMENT_PARTS = ("text-plain", "document", "search_result")
_TEXTS = ("text", "input_text", "output_text", "refusal")
_SILENT = ("reasoning", "thinking", "redacted_thinking", "tool_call", "tool_use", "tool_call_chunk", "function_call")
_MEDIA = {
    "image": "an image",
    "image_url": "an image",
    "input_image": "an image",
    "audio": "audio",
    "input_audio": "audio",
    "video": "a video",
    "video_url": "a video",
    "file": "a file",
    "input_file": "a file",
}


def text_of(content: object, where: str, role: str = "user", between: str = "\n") -> tuple[str, list[Document]]:
    """A message's text, and the documents among its parts.

    Args:
        content: text, None, or a list of parts: strings, or mappings with a `type`.
        where: names the message in errors.
        role: of the message. Reasoning and call parts of an assistant are skipped, because they are stored elsewhere.
        between: separator between the texts.

    Raises:
        SettingsError: a part that is not text, or a document without its text.
    """
    if content is None:
        return "", []
    if isinstance(content, str):
        return content, []
    if isinstance(content, Mapping) or not isinstance(content, Sequence):
        raise SettingsError(
            f"the content of {where} must be text, None or a list of parts, got {type(content).__name__}; write "
            '[{"type": "text", "text": "..."}]'
        )
    texts: list[str] = []
    documents: list[Document] = []
    for number, part in enumerate(content):
        here = f"{where}.content[{number}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Document):
            documents.append(part)
        elif isinstance(part, Mapping) and kind in _TEXTS and isinstance(text := part.get("text"), str):
            texts.append(text)
        elif isinstance(part, Mapping) and kind in DOCUMENT_PARTS:
            documents.append(document_of(part, here))
        elif not (role == "assistant" and kind in _SILENT):
            what = f"{_MEDIA[str(kind)]} ({kind!r})" if kind in _MEDIA else f"a block of type {kind!r}"
            raise SettingsError(
                f"{here} is {what}, and a local language model reads text: 'text' blocks, and "
                f"{', '.join(map(repr, DOCUMENT_PARTS))} for documents; describe it in words, or leave it out"
            )
    return between.join(texts), documents


def document_of(part: Mapping[str, object], where: str) -> Document:
    """Convert a part of `DOCUMENT_PARTS` to a document, with title, context, source and url as metadata.

    Raises:
        SettingsError: the part does not contain its text (a URL, a file id, a PDF); `where` names the part.
    """
    text = _text_in(part)
    if text is None:
        raise SettingsError(
            f"{where} is a {part.get('type')!r} block without text, got the keys {sorted(map(str, part))}; put the "
            "document's text itself into the block (Memograft fetches nothing and reads no files)"
        )
    about = {key: part[key] for key in ("title", "context", "source", "url") if isinstance(part.get(key), str)}
    metadata = part.get("metadata")
    return Document(text, str(part.get("id") or ""), {**(metadata if isinstance(metadata, Mapping) else {}), **about})


def _text_in(part: Mapping[str, object]) -> str | None:
    """The part's text, in any of the known fields."""
    source = part.get("source")
    for holder in (part, source if isinstance(source, Mapping) else {}):
        for key in ("text", "data"):
            if isinstance(text := holder.get(key), str) and holder.get("type") != "base64":
                return text
        content = holder.get("content")
        if isinstance(content, str):
            return content
        if isinstance(content, Sequence) and all(isinstance(p, Mapping) and "text" in p for p in content):
            return "\n\n".join(str(p["text"]) for p in content)
    encoded = part.get("base64")
    if isinstance(encoded, str) and str(part.get("mime_type", "")).startswith("text/"):
        try:
            return base64.b64decode(encoded, validate=True).decode()
        except ValueError:  # not base64, or not UTF-8
            return None
    return None
