"""`create_memograft_documents_chain`: a prompt and a model that get the documents as documents, not as prompt text.

    {"context": [Document, ...], "input": "..."} ──> prompt, {context} a pointer ──> llm, documents=[...] ──> parser

It stands where langchain_classic's `create_stuff_documents_chain` stands, and `create_retrieval_chain` takes it
unchanged.
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

_QUESTIONS = ("input", "question", "query")  # what chains of LangChain call it
_POINTER = "(the documents given with the question)"
_MOST_AT_ONCE = 64  # of one `.batch()`, if its config says nothing; LangChain's own default is a few threads


def create_memograft_documents_chain(
    llm: LanguageModelLike,
    prompt: BasePromptTemplate[Any],
    *,
    output_parser: BaseOutputParser[Any] | None = None,
    document_prompt: BasePromptTemplate[str] | None = None,
    document_variable_name: str = "context",
    document_pointer: str = _POINTER,
) -> Runnable[dict[str, Any], Any]:
    """Chain that hands a list of documents, highest-ranked first, to a model that memorizes them.

    The documents are judged by the question: the input's "input", "question" or "query", if it stands in the last human
    message; else by that whole message, which should then hold no instructions.

    Args:
        llm: `ChatMemograft` or `MemograftLLM`, also bound, with retries or with fallbacks that are such models too.
        prompt: the prompt. It may hold the document variable, and need not: the model puts the documents into the
            prompt itself, before the question or where its chat template wants them.
        output_parser: what makes the chain's output of the model's; by default its text.
        document_prompt: turns each document into the text that is memorized, as in `create_stuff_documents_chain`; by
            default that is its `page_content` alone.
        document_variable_name: the key of the documents in the input, and the prompt's variable.
        document_pointer: what the prompt says in the variable's place, so that the documents do not stand there twice.
            Where there are no documents it says nothing.

    Returns:
        A Runnable: a dictionary with the documents and the prompt's other variables -> the parsed answer.

    Raises:
        ValueError: `llm` takes no documents.

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
                "would answer without them; use langchain_classic's create_stuff_documents_chain for other models"
            )

    def point(inputs: dict[str, Any]) -> str:
        return document_pointer if inputs[document_variable_name] else ""

    def answer(inputs: dict[str, Any]) -> Runnable[dict[str, Any], Any]:
        documents = _documents(inputs, document_variable_name, document_prompt)
        pointed = RunnablePassthrough.assign(**{document_variable_name: point}).with_config(run_name="format_inputs")
        query = _query(prompt, {**inputs, document_variable_name: point(inputs)})
        return pointed | prompt | llm.bind(documents=documents, **query)

    async def aanswer(inputs: dict[str, Any]) -> Runnable[dict[str, Any], Any]:  # without it, a thread is borrowed
        return answer(inputs)

    chain: Runnable[dict[str, Any], Any] = RunnableLambda(answer, aanswer) | (output_parser or StrOutputParser())
    return chain.with_config(run_name="memograft_documents_chain", max_concurrency=_MOST_AT_ONCE)


def _models(llm: Any) -> Iterator[Any]:
    """What is asked in the end, behind anything that only passes arguments on."""
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
    """The input's documents; whether they are any is the model's to judge."""
    if not isinstance(inputs, Mapping) or key not in inputs:
        got = sorted(map(str, inputs)) if isinstance(inputs, Mapping) else type(inputs).__name__
        raise ValueError(f"the input must be a dictionary with a list of documents under {key!r}, got {got}; add it")
    documents = inputs[key]
    if document_prompt is None:
        return documents
    return [_formatted(document, document_prompt) for document in documents]


def _query(prompt: BasePromptTemplate[Any], inputs: Mapping[str, Any]) -> dict[str, str]:
    """The question's own words as a call's argument, where the prompt shows them in its last human message."""
    try:
        messages = prompt.format_prompt(**inputs).to_messages()
    except Exception:  # the chain formats it again, and says what is wrong in its own way
        return {}
    asked = next((m.text for m in reversed(messages) if isinstance(m, HumanMessage)), "")
    words = (inputs.get(name) for name in _QUESTIONS)
    return next(({"query": q} for q in words if isinstance(q, str) and q.strip() and q in asked), {})


def _formatted(document: Document, prompt: BasePromptTemplate[str]) -> Document:
    return document.model_copy(update={"page_content": format_document(document, prompt)})
