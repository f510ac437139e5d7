"""`Prompt`: token ids of messages and documents, with the positions of the documents.

The chat template is rendered with placeholders, which are then replaced by the texts. So the position of every text is
known exactly, and no text can affect the template. Only the template produces control tokens: the same characters in a
document or a message are encoded as ordinary text. (An unpaired surrogate, which tokenizers refuse, becomes U+FFFD.)
"""

from __future__ import annotations

import copy
import re
from bisect import bisect_left, bisect_right
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
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
    """Format documents and question as one user turn, for chat templates without a place for documents."""
    blocks = "\n\n".join(f"[{number}] {text}" for number, text in enumerate(texts, start=1))
    return f"Documents:\n\n{blocks}\n\nQuestion: {question}"


@dataclass(frozen=True)
class Prompt:
    """The tokens of a prompt and the positions of its parts.

    Attributes:
        ids: token ids, T of them.
        spans: for each document, in order, its tokens as [start, end) positions in `ids`.
        documents: the documents in the prompt.
        question: the tokens of the last user message, [start, end); (0, 0) if there is none.
        history: the tokens of each earlier message, except system messages.
        text: the encoded text.
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
        """Positions of all context tokens, ascending. Position 0 is left out, because nothing predicts it."""
        return tuple(sorted({t for start, end in self.spans for t in range(max(start, 1), end)}))


class PromptBuilder:
    """Renders and encodes prompts for one tokenizer. It has a copy of it, because fast tokenizers are not thread-safe.

    Raises:
        SettingsError: the tokenizer does not report character offsets.
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
        """Whether the chat template includes system messages."""
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
        """Encode messages, documents and tools, ending with an open assistant turn.

        Documents go where the template puts them, or else to the start of the last user turn, before the question.
        `query` is the question within the last user message.

        Raises:
            EmptyPromptError: there are no messages.
            SettingsError: a message is malformed, the template refuses the conversation or drops a part of it, or it
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
            if turn.more.get("tool_calls"):  # many templates drop the content beside calls
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
        """The documents alone as an assistant turn, as in FastMem's paper. The one span ends with the turn.

        Raises:
            SettingsError: the template refuses a conversation that begins with the assistant.
        """
        texts = Texts()
        context = texts.add("\n\n".join(d.text for d in documents))
        turn = [{"role": "assistant", "content": context}]
        text, places = texts.fill(self._with_documents(turn, (), (), open_turn=False))
        _all_there("message", [context], places)
        ids, offsets = self._encode(text, places)
        start, end = token_span(offsets, places[context][-1])
        if end > 0:
            end = next((n + 1 for n in range(end, len(ids)) if ids[n] in self._control.values()), end)
        return Prompt(tuple(ids), ((start, end),), tuple(documents))

    @cached_property
    def turn_end(self) -> int | None:
        """The token behind an assistant's answer in the template, else the tokenizer's EOS; None without both."""
        with suppress(SettingsError):  # raised by templates in which an assistant cannot be first
            turn = self.as_assistant([Document("a")])
            if (last := turn.ids[turn.spans[0][1] - 1]) in self._control.values():
                return last
        return self.tokenizer.eos_token_id  # type: ignore[no-any-return]

    def cut(self, text: str, tokens: int) -> str:
        """`text` without its last `tokens` tokens (at least one) and without trailing whitespace."""
        text = clean(text)
        _, offsets = self._encode_piece(text, follows=False)
        keep = len(offsets) - max(tokens, 1)
        # The first removed token starts here. If a character has several tokens, all of them are removed.
        return text[: min(offsets[keep][0], len(text) - 1)].rstrip() if keep > 0 else ""

    def head(self, text: str, tokens: int) -> str:
        """`text`, or a beginning of it with slightly more than `tokens` tokens; little more than that is tokenized."""
        start = count = 0
        while start + _CHUNK < len(text):
            count += len(self._encode_piece(clean(text[start : start + _CHUNK]), follows=start > 0)[0])
            start += _CHUNK
            # A word at the border of chunks can have more tokens than in the text, so the count is verified.
            if count > tokens and len(self._encode_piece(clean(text[:start]), follows=False)[0]) > tokens:
                return text[:start]
        return text

    def continued(self, text: str) -> tuple[int, ...]:
        """The tokens of plain text that follows other text."""
        return tuple(self._encode_piece(clean(text), follows=True)[0])

    def plain(self, text: str) -> tuple[int, ...]:
        """The tokens of a text alone, in which control tokens are encoded as ordinary text."""
        text = clean(text)
        return tuple(self._encode(text, {"": [(0, len(text))]})[0])

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids -> text, without control tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token, for display."""
        return [str(self.tokenizer.decode([i], clean_up_tokenization_spaces=False)) for i in ids]

    def _disarmed(self, texts: Texts, values: list[Any]) -> list[Any]:
        """Replace strings in nested values, keys too, that could become control tokens in the rendered prompt.

        Such a string contains a control token, or a part of one that a template may complete: Qwen3-Coder's template
        writes the keys of a tool between < and >. Words that occur in the template's code are not replaced, because it
        may compare them.
        """
        found = dict.fromkeys(strings(values))
        if not found:
            return values
        hidden = {text for text in found if text not in self._words and self._fragments.include(text)}
        if self._spells(" ".join(found)):
            hidden |= {text for text in found if self._spells(text)}
        return texts.within(values, hidden)  # type: ignore[no-any-return]

    def _spells(self, text: str) -> bool:
        """Whether the tokenizer finds a control token in a text, or the text has an unpaired surrogate."""
        if clean(text) != text:
            return True
        return bool(self._forged(text, *self._encode_piece(text, follows=True), [(0, len(text))]))

    def _with_documents(
        self, messages: Sequence[Message], keys: Sequence[str], tools: Sequence[object], *, open_turn: bool = True
    ) -> str:
        """Render the conversation, with `keys` as the documents if the template has a place for them.

        Templates use different names for a document's text, and some print all fields, so the fewest fields are tried
        first. Some need a list even without documents, others refuse an empty one.
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
        except Exception as e:  # a template can raise anything
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
        """Token ids and character offsets. Control tokens inside the texts at `places` are split into ordinary text.

        They are found by encoding, not by searching, because a tokenizer's normaliser may fold widths or cases.
        Splitting one may create another, so this is repeated until there are none.
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
        """Positions at which to split `text` so that the texts at `borders` contain no control tokens."""
        control = {id: token for token, id in self._control.items()}
        unknown = self.tokenizer.unk_token_id
        cuts = set()
        for id, (start, end) in zip(ids, offsets, strict=True):
            if id not in control or (id == unknown and control[id] not in text[start:end]):
                continue  # a character that is not in the vocabulary
            while start < end and text[start].isspace():  # some control tokens include adjacent spaces
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
        # SentencePiece adds a space before the first word, so a control token is put in front of the text and removed
        # again.
        lead = self._lead if follows else ""
        encoded = self.tokenizer(lead + text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        skip = 1 if lead else 0
        offsets = [(max(a - len(lead), 0), max(b - len(lead), 0)) for a, b in encoded["offset_mapping"][skip:]]
        return list(encoded["input_ids"][skip:]), offsets


def token_span(offsets: Sequence[Span], place: Span) -> Span:
    """The tokens that contain characters of [start, end); (0, 0) if the text is empty."""
    if place[0] == place[1]:
        return (0, 0)
    start = bisect_right(offsets, place[0], key=lambda span: span[1])
    end = bisect_left(offsets, place[1], key=lambda span: span[0])
    return (start, end) if start < end else (0, 0)


def _within(text: str, place: Span, query: str | None) -> Span:
    """The last occurrence of `query` in text[start:end]; the whole place without a query."""
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
    """The variables of a template, and the words in its code, which it may compare with texts or use as keys."""
    env = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        with bounded(LIMIT):  # Jinja folds constants while parsing
            tree = env.parse(_GENERATION.sub("", template))
            variables = jinja2.meta.find_undeclared_variables(tree)
    except (jinja2.TemplateSyntaxError, RuntimeError):  # tags that only transformers defines, or too many steps
        return ({"documents"} if re.search(r"\bdocuments\b", template) else set()), set()
    constants = (node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str))
    attributes = (node.attr for node in tree.find_all(jinja2.nodes.Getattr))
    return variables, {w for w in (*constants, *attributes) if w.isidentifier()}
