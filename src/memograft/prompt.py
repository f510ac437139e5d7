"""`Prompt`: token ids of messages and documents, and which of them are the documents'.

The chat template is rendered with placeholders, which are then replaced by the real texts: so every text's place is known
exactly, and nothing a document says can steer the template. Control tokens are only ever those of the template: the same
characters inside a document or a message are encoded as ordinary text. Knows nothing of models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from memograft.documents import Document
from memograft.errors import EmptyPromptError, SettingsError

__all__ = ["Prompt", "PromptBuilder", "render_documents"]

Message = Mapping[str, Any]
Span = tuple[int, int]


def render_documents(texts: Sequence[str], question: str) -> str:
    """How documents stand in a user turn, where the chat template has no place of its own for them."""
    blocks = "\n\n".join(f"[{number}] {text}" for number, text in enumerate(texts, start=1))
    return f"Documents:\n\n{blocks}\n\nQuestion: {question}"


@dataclass(frozen=True)
class Prompt:
    """What the model reads.

    Attributes:
        ids: token ids, T of them.
        spans: for each document, in order, its tokens as [start, end) positions in `ids`.
        documents: the documents that stand in the prompt.
    """

    ids: tuple[int, ...]
    spans: tuple[Span, ...]
    documents: tuple[Document, ...]

    @property
    def context(self) -> tuple[int, ...]:
        """Positions of all context tokens, ascending; position 0 has nothing before it and is left out."""
        return tuple(sorted({t for start, end in self.spans for t in range(max(start, 1), end)}))


class PromptBuilder:
    """Renders and encodes prompts for one tokenizer; holds its own copy, since fast tokenizers are not thread-safe."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._control = _control_tokens(tokenizer)
        self._template: str | None = getattr(tokenizer, "chat_template", None) or None
        if isinstance(self._template, dict):
            self._template = self._template.get("rag") or self._template.get("default")
        self._native = self._template is not None and "documents" in _variables(self._template)

    @property
    def has_native_documents(self) -> bool:
        """Whether the chat template has a place for documents."""
        return self._native

    def build(self, messages: Sequence[Message], documents: Sequence[Document] = ()) -> Prompt:
        """Encode messages and documents, the assistant's turn open at the end.

        Documents go where the template wants them, else to the head of the last user turn, before the question.

        Raises:
            EmptyPromptError: there are no messages.
            SettingsError: a message is malformed, or the template refuses the conversation.
        """
        texts = _Texts()
        turns = [_checked(m, n) for n, m in enumerate(messages)]
        if not turns:
            raise EmptyPromptError("a request needs a `question` or at least one message, got neither; pass one")
        keys = [texts.add(d.text) for d in documents]
        rendered: list[dict[str, Any]] = []
        last_user = max((n for n, m in enumerate(turns) if m["role"] == "user"), default=len(turns) - 1)
        for n, message in enumerate(turns):
            content = texts.add(message["content"])
            if keys and n == last_user and not self._native:
                content = render_documents(keys, content)
            rendered.append({**message, "content": content})
        native = [{"title": f"{n}", "text": key, "content": key} for n, key in enumerate(keys, start=1)]
        text, places = texts.fill(self._render(rendered, native if self._native else None))
        ids, offsets = self._encode(text, places.values())
        if missing := [k for k in keys if k not in places]:
            number = keys.index(missing[0]) + 1
            raise SettingsError(
                f"the chat template dropped document {number} of {len(keys)}; pass documents=[] and write them "
                "into the message, or set another `tokenizer.chat_template`"
            )
        spans = tuple(_token_span(offsets, places[key]) for key in keys)
        return Prompt(tuple(ids), spans, tuple(documents))

    def as_assistant(self, documents: Sequence[Document]) -> Prompt:
        """The context alone as an assistant turn: the text FastMem's paper memorizes. Its one span ends with the turn."""
        texts = _Texts()
        context = texts.add("\n\n".join(d.text for d in documents))
        text, places = texts.fill(self._render([{"role": "assistant", "content": context}], None, open_turn=False))
        ids, offsets = self._encode(text, places.values())
        start, end = _token_span(offsets, places[context])
        closing = next((n for n in range(end, len(ids)) if ids[n] in self._control.values()), None)
        return Prompt(tuple(ids), ((start, end if closing is None else closing + 1),), tuple(documents))

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids -> text, control tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token, for people to look at."""
        return [str(self.tokenizer.decode([i], clean_up_tokenization_spaces=False)) for i in ids]

    def _render(self, messages: list[dict[str, Any]], documents: Any, *, open_turn: bool = True) -> str:
        if self._template is None:
            return self._plain(messages, open_turn)
        extra = {"documents": documents} if documents else {}
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, chat_template=self._template, tokenize=False, add_generation_prompt=open_turn, **extra
                )
            )
        except jinja2.TemplateError as e:
            roles = ", ".join(m["role"] for m in messages)
            raise SettingsError(
                f"the tokenizer's chat template refuses a conversation of the roles [{roles}]: {e}; "
                'change the messages (or, for FastMem, use template="prompt")'
            ) from e

    def _plain(self, messages: list[dict[str, Any]], open_turn: bool) -> str:
        bos = self.tokenizer.bos_token or ""
        if len(messages) == 1 and messages[0]["role"] != "user":
            return f"{bos}{messages[0]['content']}"
        lines = [m["content"] if m["role"] in ("user", "system") else f"Answer: {m['content']}" for m in messages]
        return bos + "\n\n".join(lines) + ("\n\nAnswer:" if open_turn else "")

    def _encode(self, text: str, contents: Iterable[Span]) -> tuple[list[int], list[Span]]:
        """Ids and character offsets; control tokens inside `contents` are broken up into ordinary text."""
        cuts = {0, len(text)}
        spans = [s for s in contents if s[0] < s[1]]
        for token in self._control:
            for start, end in spans:
                at = text.find(token, start, end)
                while at >= 0:
                    cuts.add(at + max(1, len(token) // 2))
                    at = text.find(token, at + 1, end)
        edges = sorted(cuts)
        ids: list[int] = []
        offsets: list[Span] = []
        for start, end in zip(edges, edges[1:], strict=False):
            piece_ids, piece_offsets = self._encode_piece(text[start:end], follows=start > 0)
            ids += piece_ids
            offsets += [(a + start, b + start) for a, b in piece_offsets]
        return ids, offsets

    def _encode_piece(self, text: str, follows: bool) -> tuple[list[int], list[Span]]:
        # SentencePiece puts a space before the first word it sees; a control token in front makes it the second.
        lead = next(iter(self._control), "") if follows else ""
        encoded = self.tokenizer(lead + text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        skip = 1 if lead else 0
        offsets = [(max(a - len(lead), 0), b - len(lead)) for a, b in encoded["offset_mapping"][skip:]]
        return list(encoded["input_ids"][skip:]), offsets


class _Texts:
    """Placeholders for texts, so that a template never sees what it renders."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def add(self, text: str) -> str:
        key = f"\ue000{len(self._texts)}\ue001"  # private-use characters: no template treats them specially
        self._texts[key] = text
        return key

    def fill(self, rendered: str) -> tuple[str, dict[str, Span]]:
        """The real text, and where each placeholder's text went (a template may show one twice; the last counts)."""
        parts, places, length = [], {}, 0
        for part in re.split("(\ue000[0-9]+\ue001)", rendered):
            text = self._texts.get(part, part)
            if part in self._texts:
                places[part] = (length, length + len(text))
            parts.append(text)
            length += len(text)
        return "".join(parts), places


def _checked(message: Message, position: int) -> dict[str, Any]:
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not isinstance(content, str):
        raise SettingsError(
            f"messages[{position}] needs `role` and `content` as strings, got role={role!r} and content of type "
            f"{type(content).__name__}; write {{'role': 'user', 'content': '...'}}"
        )
    return dict(message)


def _token_span(offsets: Sequence[Span], place: Span) -> Span:
    """Tokens that hold a character of [start, end); (0, 0) if the text is empty."""
    inside = [n for n, (a, b) in enumerate(offsets) if a < place[1] and b > place[0]]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)


def _control_tokens(tokenizer: Any) -> dict[str, int]:
    """Text -> id of every token that is more than text: special ones and whatever was added beside the vocabulary."""
    if not getattr(tokenizer, "is_fast", False):
        raise SettingsError(
            f"the tokenizer must know where its tokens lie in the text (a fast tokenizer), got "
            f"{type(tokenizer).__name__}; load it with AutoTokenizer.from_pretrained(..., use_fast=True)"
        )
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    added = {str(t.content): i for i, t in tokenizer.added_tokens_decoder.items()}
    return {t: i for t, i in (special | added).items() if len(t) > 1}


def _variables(template: str) -> set[str]:
    env = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        return jinja2.meta.find_undeclared_variables(env.parse(template))
    except jinja2.TemplateSyntaxError:  # {% generation %} and other tags only transformers knows
        return {"documents"} if re.search(r"\bdocuments\b", template) else set()
