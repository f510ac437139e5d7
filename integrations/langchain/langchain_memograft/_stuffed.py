"""Extract the documents that LangChain's chains have rendered into a prompt, so that they can be memorized.

Only prompts of RetrievalQA's templates in `langchain_classic` are parsed, for chat models and for LLMs. Other prompts
are not changed; if one contains a context, there is a warning.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from memograft import Document
from memograft import chat as core
from memograft.chat import unstuffed

__all__ = ["taken_out", "warn_of_context"]

_HOME = "langchain_classic.chains.question_answering.stuff_prompt"
_SEPARATOR = "\n\n"  # between documents, in all chains of langchain_classic


def taken_out(messages: Sequence[BaseMessage]) -> tuple[list[BaseMessage], list[Document]]:
    """Return the messages without the documents, and the documents.

    Messages that are not from a template of langchain_classic are returned unchanged, without documents.
    """
    home: Any = sys.modules.get(_HOME)  # imported if there are such prompts
    if home is None or not messages or not isinstance(messages[-1], HumanMessage):
        return list(messages), []
    last = messages[-1]
    found = unstuffed(str(last.text), [home.prompt_template], separator=_SEPARATOR)
    if found is not None and found.documents and found.fields.get("question", "").strip():
        return [*messages[:-1], last.model_copy(update={"content": found.fields["question"]})], list(found.documents)
    for n, message in enumerate(messages):
        if isinstance(message, SystemMessage):
            found = unstuffed(str(message.text), [home.system_template], separator=_SEPARATOR)
            if found is not None and found.documents:
                instruction = home.system_template.partition("{context}")[0].rstrip("-\n")
                plain = message.model_copy(update={"content": instruction})
                return [*messages[:n], plain, *messages[n + 1 :]], list(found.documents)
    return list(messages), []


def warn_of_context(messages: Sequence[BaseMessage]) -> None:
    """Warn, once per process, if a prompt's text contains a context, because it is not memorized."""
    asked = [message for message in messages if isinstance(message, SystemMessage)] + list(messages[-1:])
    core.warn_of_context(
        [str(message.text) for message in asked],
        "use create_memograft_documents_chain instead of create_stuff_documents_chain, pass `documents=`, or set "
        '`context_delimiters`, such as ("<context>", "</context>")',
    )
