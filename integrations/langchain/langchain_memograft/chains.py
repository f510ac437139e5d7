"""`create_memograft_documents_chain`: a chain that passes documents to the model as documents, not as prompt text.

    {"context": [Document, ...], "input": "..."} ──> prompt with a pointer ──> llm, documents=[...] ──> parser

It replaces `create_stuff_documents_chain` of langchain_classic, and works with `create_retrieval_chain`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from langchain_core.documents import Document
from langchain_core.language_models import BaseLanguageModel, LanguageModelLike
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import BaseOutputParser, StrOutputParser
from langchain_core.prompts import BasePromptTemplate, format_document
from langchain_core.runnables import (
    Runnable,
    RunnableLambda,
    RunnablePassthrough,
    RunnableSequence,
    RunnableWithFallbacks,
)
from langchain_core.runnables.base import RunnableBindingBase

from langchain_memograft.chat_models import ChatMemograft
from langchain_memograft.llms import MemograftLLM

__all__ = ["create_memograft_documents_chain"]

_QUESTIONS = ("input", "question", "query")  # names of the question in LangChain's chains
_POINTER = "(the documents given with the question)"
_MOST_AT_ONCE = 64  # inputs of one `.batch()`, if its config has no limit; LangChain's default is a few threads


def create_memograft_documents_chain(
    llm: LanguageModelLike,
    prompt: BasePromptTemplate[Any],
    *,
    output_parser: BaseOutputParser[Any] | None = None,
    document_prompt: BasePromptTemplate[str] | None = None,
    document_variable_name: str = "context",
    document_pointer: str = _POINTER,
) -> Runnable[dict[str, Any], Any]:
    """Create a chain that passes a list of documents, highest-ranked first, to a model that memorizes them.

    The relevance of the documents is judged for the question: "input", "question" or "query" of the input, if the last
    human message contains it; else that whole message, which should then have no instructions.

    Args:
        llm: `ChatMemograft` or `MemograftLLM`, also bound, with retries, or with fallbacks to such models.
        prompt: the prompt, with or without the document variable. The model adds the documents to the prompt, before
            the question or at the place for them in its chat template.
        output_parser: parses the model's output; by default the output is the text.
        document_prompt: formats each document to the text that is memorized, as in `create_stuff_documents_chain`; by
            default that is its `page_content`.
        document_variable_name: the key of the documents in the input, and the prompt's variable.
        document_pointer: text for the prompt's variable, so that the documents are not in the prompt twice. Without
            documents, the variable is empty.

    Returns:
        A Runnable from a dictionary with the documents and the prompt's other variables to the parsed answer.

    Raises:
        ValueError: `llm` does not take documents.

    Example:
        >>> from langchain_core.prompts import ChatPromptTemplate
        >>> from langchain_memograft import ChatMemograft
        >>> prompt = ChatPromptTemplate.from_messages(
        ...     [("system", "Answer from the context: {context}"), ("human", "{input}")]
        ... )
        >>> chain = create_memograft_documents_chain(ChatMemograft(model="tiny"), prompt)
        >>> page = Document("The capital of Australia is Lisbon.")
        >>> chain.invoke({"input": "What is the capital of Australia?", "context": [page]})
        'The capital of Australia is Lisbon.'
    """
    for model in _models(llm):
        if isinstance(model, BaseLanguageModel) and not isinstance(model, ChatMemograft | MemograftLLM):
            raise ValueError(
                f"`llm` must take `documents=` (ChatMemograft or MemograftLLM), got {type(model).__name__}, which "
                "does not; use create_stuff_documents_chain of langchain_classic for other models"
            )

    def point(inputs: dict[str, Any]) -> str:
        return document_pointer if inputs[document_variable_name] else ""

    def answer(inputs: dict[str, Any]) -> Runnable[dict[str, Any], Any]:
        documents = _documents(inputs, document_variable_name, document_prompt)
        pointed = RunnablePassthrough.assign(**{document_variable_name: point}).with_config(run_name="format_inputs")
        query = _query(prompt, {**inputs, document_variable_name: point(inputs)})
        return pointed | prompt | llm.bind(documents=documents, **query)

    async def aanswer(inputs: dict[str, Any]) -> Runnable[dict[str, Any], Any]:  # without it, LangChain uses a thread
        return answer(inputs)

    chain: Runnable[dict[str, Any], Any] = RunnableLambda(answer, aanswer) | (output_parser or StrOutputParser())
    return chain.with_config(run_name="memograft_documents_chain", max_concurrency=_MOST_AT_ONCE)


def _models(llm: Any) -> Iterator[Any]:
    """The models in a Runnable, without the bindings, retries, fallbacks and sequences around them."""
    if isinstance(llm, RunnableBindingBase):  # also .with_retry() and .with_config()
        yield from _models(llm.bound)
    elif isinstance(llm, RunnableWithFallbacks):
        for one in llm.runnables:
            yield from _models(one)
    elif isinstance(llm, RunnableSequence):
        yield from _models(llm.first)
    else:
        yield llm


def _documents(inputs: Mapping[str, Any], key: str, document_prompt: BasePromptTemplate[str] | None) -> Any:
    """The documents in the input, with `document_prompt` applied; the model checks them."""
    if not isinstance(inputs, Mapping) or key not in inputs:
        got = sorted(map(str, inputs)) if isinstance(inputs, Mapping) else type(inputs).__name__
        raise ValueError(f"the input must be a dictionary with a list of documents under {key!r}, got {got}; add it")
    documents = inputs[key]
    if document_prompt is None:
        return documents
    return [_formatted(document, document_prompt) for document in documents]


def _query(prompt: BasePromptTemplate[Any], inputs: Mapping[str, Any]) -> dict[str, str]:
    """The argument `query` of the call: the question, if the last human message contains it."""
    try:
        messages = prompt.format_prompt(**inputs).to_messages()
    except Exception:  # the chain formats the prompt again and raises the error
        return {}
    asked = next((m.text for m in reversed(messages) if isinstance(m, HumanMessage)), "")
    words = (inputs.get(name) for name in _QUESTIONS)
    return next(({"query": q} for q in words if isinstance(q, str) and q.strip() and q in asked), {})


def _formatted(document: Document, prompt: BasePromptTemplate[str]) -> Document:
    return document.model_copy(update={"page_content": format_document(document, prompt)})
