"""Extract the context from prompts of LlamaIndex's synthesizers, so that it can be memorized as documents.

LlamaIndex's synthesizers, and the chat engines that use them, render a template with the packed nodes as `context_str`
(a string or a list of strings), `context_msg` (refine) or `context_messages` (multimodal). The context is removed from
the prompt and added to the message with the question as citable blocks, which `_messages` converts to documents. So the
documents are in the prompt once, in Memograft's form, and their relevance is judged for the question alone. In refine,
the existing answer is the last document, so that the model can repeat it if the new context is irrelevant.

LlamaIndex's default templates are replaced by the question, because their other text is about the place of the context.
A template of the user is kept, except for the context.
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
_MARK = "\ue100context\ue101"  # characters of the private use area, which are not in other texts
_PLACE = "(the documents)"  # replaces the context in a template of the user


def arguments(prompt: BasePromptTemplate, given: Mapping[str, Any], llm: Any) -> dict[str, Any]:
    """All arguments for rendering the template."""
    selected = prompt.select(llm=llm) if isinstance(prompt, SelectorPromptTemplate) else prompt
    return {**selected.kwargs, **given}


def contexts(args: Mapping[str, Any]) -> list[Document] | None:
    """The documents of the context; None if the prompt has no context, or one with other blocks than text."""
    found = {name: args[name] for name in CONTEXT if args.get(name)}
    if not found:
        return None
    documents: list[Document] = []
    for name, value in found.items():
        lines = not isinstance(value, str)  # of simple_summarize, which joins nodes with line breaks
        for part in value if lines else [value]:
            if isinstance(part, ChatMessage) and not all(isinstance(block, TextBlock) for block in part.blocks):
                return None
            text = str(part.content or "") if isinstance(part, ChatMessage) else str(part)
            documents += split_context(text, by_line=lines and name == "context_str")
    # The metadata of a file is repeated before each of its nodes; documents with the same id and text would be merged.
    seen = Counter[str]()
    for n, document in enumerate(documents):
        seen[document.text] += 1
        if seen[document.text] > 1:
            documents[n] = Document(document.text, f"{document.id}-{seen[document.text]}")
    return documents


def marked(args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with a marker instead of each context."""
    marks = {"context_messages": [ChatMessage(content=_MARK)]}
    return {name: marks.get(name, _MARK) for name in CONTEXT if args.get(name)}


def with_documents(
    messages: Sequence[ChatMessage], documents: Sequence[Document], args: Mapping[str, Any]
) -> list[ChatMessage]:
    """Replace the markers in rendered messages, and add the documents before the text of the last user message."""
    stock = [pair for pair in _stock(args) if any(pair[0] in str(message.content or "") for message in messages)]
    if not any(_MARK in wording for wording, _ in stock):  # LlamaIndex's system prompt in a template of the user
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
    """Pairs of a rendered default template of LlamaIndex and its replacement."""
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
    """LlamaIndex's default templates, read from LlamaIndex so that they match its version."""
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
