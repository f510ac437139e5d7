"""`Prompt`: token ids of messages and documents, and which of them are the documents'.

The chat template is rendered with placeholders, which are then replaced by the real texts: so every text's place is
known exactly, and nothing a document says can steer the template. Control tokens are only ever those of the template:
the same characters inside a document or a message are encoded as ordinary text. (Half a surrogate pair, which no
tokenizer takes, becomes U+FFFD.) Knows nothing of models.
"""

from __future__ import annotations

import copy
import re
from bisect import bisect_left, bisect_right
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.meta
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from memograft.documents import Document
from memograft.errors import EmptyPromptError, SettingsError
from memograft.prompt.bounded import LIMIT, bounded
from memograft.prompt.control import Fragments, control_tokens, lead
from memograft.prompt.messages import Message, checked
from memograft.prompt.placeholders import Texts, clean, strings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Prompt", "PromptBuilder", "Span", "render_documents", "token_span"]


Span = tuple[int, int]

_CHUNK = 8192  # characters
_GENERATION = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")  # transformers' own tags


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
        question: the last user message's own tokens, [start, end); (0, 0) if there is none.
        history: the tokens of each message before that one, those of the system aside.
        text: what was encoded.
        offsets: for each token, its characters in `text`, [start, end).
    """

    ids: tuple[int, ...]
    spans: tuple[Span, ...]
    documents: tuple[Document, ...]
    question: Span = (0, 0)
    history: tuple[Span, ...] = ()
    text: str = field(default="", repr=False)
    offsets: Sequence[Span] = field(default=(), repr=False)

    @property
    def context(self) -> tuple[int, ...]:
        """Positions of all context tokens, ascending; position 0 has nothing before it and is left out."""
        return tuple(sorted({t for start, end in self.spans for t in range(max(start, 1), end)}))


class PromptBuilder:
    """Renders and encodes prompts for one tokenizer; holds its own copy, since fast tokenizers are not thread-safe.

    Raises:
        SettingsError: the tokenizer cannot tell where its tokens lie in the text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._template: str | None = getattr(tokenizer, "chat_template", None) or None
        if isinstance(self._template, dict):
            self._template = self._template.get("rag") or self._template.get("default")
        self._control = control_tokens(tokenizer, self._template or "")
        self._lead = lead(tokenizer)
        self.tokenizer = copy.deepcopy(tokenizer)
        self._variables, self._words = _read(self._template or "")
        self._fragments = Fragments(self._control)

    @property
    def has_native_documents(self) -> bool:
        """Whether the chat template has a place for documents."""
        return "documents" in self._variables

    @property
    def has_native_tools(self) -> bool:
        """Whether the chat template has a place for tools."""
        return "tools" in self._variables

    @cached_property
    def has_system(self) -> bool:
        """Whether the chat template shows a system message."""
        texts = Texts()
        system, user = texts.add("s"), texts.add("u")
        try:
            return system in self._with_documents(
                [{"role": "system", "content": system}, {"role": "user", "content": user}], (), ()
            )
        except SettingsError:
            return False

    def build(
        self,
        messages: Sequence[Message],
        documents: Sequence[Document] = (),
        tools: Sequence[Mapping[str, object]] = (),
        query: str | None = None,
    ) -> Prompt:
        """Encode messages, documents and tools, the assistant's turn open at the end; `query` is the question in them.

        Documents go where the template wants them, else to the head of the last user turn, before the question.

        Raises:
            EmptyPromptError: there are no messages.
            SettingsError: a message is malformed, or the template refuses the conversation or drops a part of it, or
                has no place for tools.
        """
        if tools and not self.has_native_tools:
            raise SettingsError(
                f"the tokenizer's chat template has no place for tools, got {len(tools)}; use a model whose template "
                "has one, or force an answer of their shape with `json_schema`"
            )
        texts = Texts()
        turns = [checked(m, n) for n, m in enumerate(messages)]
        if not turns:
            raise EmptyPromptError("a request needs a `question` or at least one message, got neither; pass one")
        *extras, tools = self._disarmed(texts, [*(turn.more for turn in turns), list(tools)])
        keys = [texts.add(d.text) for d in documents]
        contents: list[str] = []
        rendered: list[Message] = []
        last_user = max((n for n, m in enumerate(turns) if m.role == "user"), default=len(turns) - 1)
        for n, (turn, extra) in enumerate(zip(turns, extras, strict=True)):
            content = texts.add(turn.content)
            contents.append(content)
            if keys and n == last_user and not self.has_native_documents:
                content = render_documents(keys, content)
            if turn.more.get("tool_calls"):  # many templates show the calls and not what is said beside them
                content = content if turn.content else ""
                contents[-1] = ""
            rendered.append({"role": turn.role, "content": content, **extra})
        text, places = texts.fill(self._with_documents(rendered, keys, tools))
        _all_there("document", keys, places)
        _all_there("message", contents, places)
        ids, offsets = self._encode(text, places)
        spans = tuple(token_span(offsets, places[key][-1]) for key in keys)
        place = places[contents[last_user]][-1] if contents[last_user] else (0, 0)
        question = token_span(offsets, _within(text, place, query))
        said = [c for c, m in zip(contents[:last_user], turns, strict=False) if c and m.role != "system"]
        history = tuple(token_span(offsets, places[c][-1]) for c in said)
        return Prompt(tuple(ids), spans, tuple(documents), question, history, text, offsets)

    def as_assistant(self, documents: Sequence[Document]) -> Prompt:
        """The context alone as an assistant turn: the text FastMem's paper memorizes. Its one span ends with the turn.

        Raises:
            SettingsError: the template refuses a conversation that the assistant begins.
        """
        texts = Texts()
        context = texts.add("\n\n".join(d.text for d in documents))
        turn = [{"role": "assistant", "content": context}]
        text, places = texts.fill(self._with_documents(turn, (), (), open_turn=False))
        _all_there("message", [context], places)
        ids, offsets = self._encode(text, places)
        start, end = token_span(offsets, places[context][-1])
        if end > 0:
            control = set(self._control.values())
            end = next((n + 1 for n in range(end, len(ids)) if ids[n] in control), end)
        return Prompt(tuple(ids), ((start, end),), tuple(documents))

    def cut(self, text: str, tokens: int) -> str:
        """`text` without its last `tokens` tokens (at least one) and without whitespace at its end."""
        text = clean(text)
        _, offsets = self._encode_piece(text, follows=False)
        keep = len(offsets) - max(tokens, 1)
        # The first token to go starts here; one character may have several tokens, and all of them go.
        return text[: min(offsets[keep][0], len(text) - 1)].rstrip() if keep > 0 else ""

    def head(self, text: str, tokens: int) -> str:
        """`text`, or where it has more than `tokens` tokens a beginning that has; not much more than that is read."""
        start = count = 0
        while start + _CHUNK < len(text):
            count += len(self._encode_piece(clean(text[start : start + _CHUNK]), follows=start > 0)[0])
            start += _CHUNK
            # Where chunks meet, a word has more tokens than it has in the text: count anew before it is believed.
            if count > tokens and len(self._encode_piece(clean(text[:start]), follows=False)[0]) > tokens:
                return text[:start]
        return text

    def continued(self, text: str) -> tuple[int, ...]:
        """The tokens of plain text that stands behind other text."""
        return tuple(self._encode_piece(clean(text), follows=True)[0])

    def plain(self, text: str) -> tuple[int, ...]:
        """The tokens of a text by itself; what looks like a control token in it is text."""
        text = clean(text)
        return tuple(self._encode(text, {"": [(0, len(text))]})[0])

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids -> text, control tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token, for people to look at."""
        return [str(self.tokenizer.decode([i], clean_up_tokenization_spaces=False)) for i in ids]

    def _disarmed(self, texts: Texts, values: list[Any]) -> list[Any]:
        """Nested values with a placeholder for each string, keys too, that could be more than text where it is shown.

        Such a string holds a control token, or a part of one that a template may complete: Qwen3-Coder's shows the keys
        of a tool between < and >. Others stay, and so do words that the template itself knows, as it may look at them.
        """
        found = dict.fromkeys(strings(values))
        if not found:
            return values
        hidden = {text for text in found if text not in self._words and self._fragments.include(text)}
        if self._spells(" ".join(found)):
            hidden |= {text for text in found if self._spells(text)}
        return texts.within(values, hidden)  # type: ignore[no-any-return]

    def _spells(self, text: str) -> bool:
        """Whether a text holds what the tokenizer takes for a control token, or half a character."""
        if clean(text) != text:
            return True
        return bool(self._forged(text, *self._encode_piece(text, follows=True), [(0, len(text))]))

    def _with_documents(
        self, messages: Sequence[Message], keys: Sequence[str], tools: Sequence[object], *, open_turn: bool = True
    ) -> str:
        """Render, with `keys` where the template has its place for documents.

        Templates disagree on the name of a document's text, and some print all fields there are, so that the fewest are
        tried first; some want a list even where there are no documents, others none.
        """
        if not self.has_native_documents:
            return self._render(messages, None, tools, open_turn)
        brief = [{"title": f"{n}", "text": key} for n, key in enumerate(keys, start=1)]
        wordy = [{"doc_id": d["title"], "content": d["text"], **d} for d in brief]
        first, second = (brief, wordy) if keys else (None, [])
        try:
            rendered = self._render(messages, first, tools, open_turn)
            if all(key in rendered for key in keys):
                return rendered
        except SettingsError:
            pass
        return self._render(messages, second, tools, open_turn)

    def _render(
        self,
        messages: Sequence[Message],
        documents: Sequence[Mapping[str, str]] | None,
        tools: Sequence[object],
        open_turn: bool,
    ) -> str:
        if self._template is None:
            return self._plain(messages, open_turn)
        try:
            with bounded(LIMIT):
                return str(
                    self.tokenizer.apply_chat_template(
                        messages,
                        chat_template=self._template,
                        tokenize=False,
                        add_generation_prompt=open_turn,
                        documents=documents,
                        tools=list(tools) or None,
                    )
                )
        except Exception as e:  # a template is a program of unknown making
            roles = ", ".join(str(m["role"]) for m in messages)
            raise SettingsError(
                f"the tokenizer's chat template refuses a conversation of the roles [{roles}]: {e}; "
                'change the messages (or, for FastMem, use template="prompt")'
            ) from e

    def _plain(self, messages: Sequence[Message], open_turn: bool) -> str:
        bos = self.tokenizer.bos_token or ""
        if len(messages) == 1 and messages[0]["role"] != "user":
            return f"{bos}{messages[0]['content']}"
        said = [(m["role"], str(m["content"])) for m in messages]
        lines = [text if role in ("user", "system") else f"Answer: {text}" for role, text in said]
        return bos + "\n\n".join(lines) + ("\n\nAnswer:" if open_turn else "")

    def _encode(self, text: str, places: Mapping[str, Sequence[Span]]) -> tuple[list[int], list[Span]]:
        """Ids and character offsets; control tokens inside the texts at `places` are broken up into ordinary text.

        Found by encoding, not by searching: a tokenizer may take for a control token what is spelt otherwise (a
        normaliser that folds widths or cases). Breaking one up can bring about another, so it is done until there are
        none.
        """
        borders = sorted(span for spans in places.values() for span in spans if span[0] < span[1])
        cuts = {0, len(text)}
        while True:
            ids: list[int] = []
            offsets: list[Span] = []
            for start, end in pairwise(sorted(cuts)):
                piece_ids, piece_offsets = self._encode_piece(text[start:end], follows=start > 0)
                ids += piece_ids
                offsets += [(a + start, b + start) for a, b in piece_offsets]
            found = self._forged(text, ids, offsets, borders)
            if not found:
                return ids, offsets
            cuts |= found

    def _forged(self, text: str, ids: Sequence[int], offsets: Sequence[Span], borders: Sequence[Span]) -> set[int]:
        """Where to cut `text` so that control tokens that a text at `borders` spells are none."""
        control = {id: token for token, id in self._control.items()}
        unknown = self.tokenizer.unk_token_id
        cuts = set()
        for id, (start, end) in zip(ids, offsets, strict=True):
            if id not in control or (id == unknown and control[id] not in text[start:end]):
                continue  # a character that the vocabulary lacks is no forgery
            while start < end and text[start].isspace():  # some control tokens swallow the space around them
                start += 1
            while start < end and text[end - 1].isspace():
                end -= 1
            if start == end:
                continue
            at = bisect_right(borders, (start, len(text))) - 1
            in_text = (at >= 0 and borders[at][1] > start) or (at + 1 < len(borders) and borders[at + 1][0] < end)
            if in_text:
                if end - start < 2:
                    raise SettingsError(
                        f"{text[start:end]!r} is a control token of the tokenizer, of one character, and a document or "
                        "message holds it; remove it from the text"
                    )
                cuts.add((start + end) // 2)
        return cuts

    def _encode_piece(self, text: str, follows: bool) -> tuple[list[int], list[Span]]:
        # SentencePiece puts a space before the first word it sees; a control token in front makes it the second.
        lead = self._lead if follows else ""
        encoded = self.tokenizer(lead + text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        skip = 1 if lead else 0
        offsets = [(max(a - len(lead), 0), max(b - len(lead), 0)) for a, b in encoded["offset_mapping"][skip:]]
        return list(encoded["input_ids"][skip:]), offsets


def token_span(offsets: Sequence[Span], place: Span) -> Span:
    """Tokens that hold a character of [start, end); (0, 0) if the text is empty."""
    if place[0] == place[1]:
        return (0, 0)
    start = bisect_right(offsets, place[0], key=lambda span: span[1])
    end = bisect_left(offsets, place[1], key=lambda span: span[0])
    return (start, end) if start < end else (0, 0)


def _within(text: str, place: Span, query: str | None) -> Span:
    """Where `query` stands last in text[start:end]; all of that if there is no query."""
    start, end = place
    found = text.rfind(clean(query), start, end) if query and query.strip() else start
    if found < 0:
        raise SettingsError(f"`query` must stand in the last user message, and {query!r:.80} does not; leave it out")
    return (found, found + len(clean(query))) if query and query.strip() else place


def _all_there(what: str, keys: Sequence[str], places: Container[str]) -> None:
    if missing := [n for n, key in enumerate(keys, start=1) if key and key not in places]:
        raise SettingsError(
            f"the chat template dropped {what} {missing[0]} of {len(keys)}; put it into another message, or set "
            "another `tokenizer.chat_template`"
        )


def _read(template: str) -> tuple[set[str], set[str]]:
    """The variables of a template, and the words in its code: those that it may compare a text with, or look up."""
    env = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        with bounded(LIMIT):  # Jinja computes constants
            tree = env.parse(_GENERATION.sub("", template))
            variables = jinja2.meta.find_undeclared_variables(tree)
    except (jinja2.TemplateSyntaxError, RuntimeError):  # further tags that only transformers knows; no end
        return ({"documents"} if re.search(r"\bdocuments\b", template) else set()), set()
    constants = (node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str))
    attributes = (node.attr for node in tree.find_all(jinja2.nodes.Getattr))
    return variables, {w for w in (*constants, *attributes) if w.isidentifier()}
