"""The context in a prompt of LlamaIndex's synthesizers -> documents of the request, and the question by itself.

Every stock synthesizer, and through them the chat engines, renders a template with the packed nodes as `context_str` (a
string or a list of them), `context_msg` (refine) or `context_messages` (multimodal). Here they are taken out of the
prompt and put beside the question as citable blocks, which `_messages` makes documents of: so they stand in the prompt
once, in Memograft's form, and are judged by the question alone. A refined answer becomes the last document: it is what
is left when the new context is not about the question.

Templates of LlamaIndex's own wording are replaced by the bare question, because that wording only tells a model where
its context begins and that it should believe it. A template of anybody else's is kept word for word, but for the
context.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock
from llama_index.core.prompts import BasePromptTemplate, ChatPromptTemplate, PromptTemplate, SelectorPromptTemplate
from llama_index.core.prompts.utils import format_string
from llama_index.llms.memograft._messages import citable
from memograft import Document
from memograft.chat import split_context

__all__ = ["CONTEXT", "arguments", "contexts", "marked", "with_documents"]

CONTEXT = ("context_str", "context_msg", "context_messages")
_MARK = "\ue100context\ue101"  # of the private use area: no text has it
_PLACE = "(the documents)"  # what a template of somebody's own says where its context was


def arguments(prompt: BasePromptTemplate, given: Mapping[str, Any], llm: Any) -> dict[str, Any]:
    """All that the template is rendered with."""
    selected = prompt.select(llm=llm) if isinstance(prompt, SelectorPromptTemplate) else prompt
    return {**selected.kwargs, **given}


def contexts(args: Mapping[str, Any]) -> list[Document] | None:
    """The context's documents; None if the prompt has none, or one that no text model can read."""
    found = {name: args[name] for name in CONTEXT if args.get(name)}
    if not found:
        return None
    documents: list[Document] = []
    for name, value in found.items():
        lines = not isinstance(value, str)  # simple_summarize, which joins nodes by line breaks
        for part in value if lines else [value]:
            if isinstance(part, ChatMessage) and not all(isinstance(block, TextBlock) for block in part.blocks):
                return None
            text = str(part.content or "") if isinstance(part, ChatMessage) else str(part)
            documents += split_context(text, by_line=lines and name == "context_str")
    # Metadata stands before each node of a file, and documents of one id and text are one.
    seen = Counter[str]()
    for n, document in enumerate(documents):
        seen[document.text] += 1
        if seen[document.text] > 1:
            documents[n] = Document(document.text, f"{document.id}-{seen[document.text]}")
    return documents


def marked(args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with a mark for each context."""
    marks = {"context_messages": [ChatMessage(content=_MARK)]}
    return {name: marks.get(name, _MARK) for name in CONTEXT if args.get(name)}


def with_documents(
    messages: Sequence[ChatMessage], documents: Sequence[Document], args: Mapping[str, Any]
) -> list[ChatMessage]:
    """Rendered messages with marks in them -> the same without, and the documents before the last user's text."""
    stock = [pair for pair in _stock(args) if any(pair[0] in str(message.content or "") for message in messages)]
    if not any(_MARK in wording for wording, _ in stock):  # LlamaIndex's system prompt in somebody's own template
        stock = []
    kept: list[ChatMessage] = []
    for message in messages:
        text = plain = str(message.content or "")
        for wording, question in stock:
            plain = plain.replace(wording, question)
        plain = plain.replace(_MARK, _PLACE)
        if plain == text:
            kept.append(message)
        elif plain.strip():
            kept.append(message.model_copy(update={"blocks": [TextBlock(text=plain)]}))
    answer = args.get("existing_answer")
    if stock and answer:
        documents = [*documents, Document(str(answer), "existing answer")]
    last = next((n for n, m in reversed(list(enumerate(kept))) if m.role == MessageRole.USER), len(kept) - 1)
    if not kept:
        return [ChatMessage(role=MessageRole.USER, blocks=[citable(d) for d in documents])]
    kept[last] = kept[last].model_copy(update={"blocks": [*map(citable, documents), *kept[last].blocks]})
    return kept


def _stock(args: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(what LlamaIndex's own wording is rendered to, what stands there instead)."""
    question = str(args.get("query_str", ""))
    known = {
        "query_str": question,
        "existing_answer": str(args.get("existing_answer", "")),
        "context_str": _MARK,
        "context_msg": _MARK,
    }
    for wording in _wordings():
        yield format_string(wording, **known), question if "{query_str}" in wording else ""


@cache
def _wordings() -> tuple[str, ...]:
    """Taken from LlamaIndex itself, so that a change of its wording is followed."""
    from llama_index.core.chat_engine import condense_plus_context, context
    from llama_index.core.prompts import chat_prompts, default_prompts

    templates: list[BasePromptTemplate] = [
        chat_prompts.CHAT_TEXT_QA_PROMPT,
        chat_prompts.CHAT_TREE_SUMMARIZE_PROMPT,
        chat_prompts.CHAT_REFINE_PROMPT,
        default_prompts.DEFAULT_TEXT_QA_PROMPT,
        default_prompts.DEFAULT_TREE_SUMMARIZE_PROMPT,
        default_prompts.DEFAULT_REFINE_PROMPT,
    ]
    wordings = [
        context.DEFAULT_CONTEXT_TEMPLATE,
        context.DEFAULT_REFINE_TEMPLATE,
        condense_plus_context.DEFAULT_CONTEXT_PROMPT_TEMPLATE,
        condense_plus_context.DEFAULT_CONTEXT_REFINE_PROMPT_TEMPLATE,
    ]
    for template in templates:
        if isinstance(template, ChatPromptTemplate):
            wordings += [str(message.content) for message in template.message_templates]
        elif isinstance(template, PromptTemplate):
            wordings.append(template.template)
    return tuple(dict.fromkeys(wordings))
