"""`MemograftMiddleware`: passes the documents of each human turn to an agent's model, and keeps them in the state.

before_model      the last human message ──> retriever ──> state["context"], with the documents that tools returned
wrap_model_call   state["context"] ──> `documents=` of the model call; the tool that it must call, if any
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NotRequired

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable
from memograft.documents import Document as MemograftDocument
from memograft.errors import MissingExtraError

from langchain_memograft._documents import from_artifact, to_documents
from langchain_memograft._errors import MemograftInvalidRequestError, translated
from langchain_memograft.chat_models import ChatMemograft

try:
    from langchain.agents.middleware.types import (
        AgentMiddleware,
        AgentState,
        ContextT,
        ModelRequest,
        ModelResponse,
        OmitFromInput,
        PrivateStateAttr,
        ResponseT,
    )
except ModuleNotFoundError as e:
    if (e.name or "").partition(".")[0] not in ("langchain", "langgraph"):
        raise
    raise MissingExtraError(
        "MemograftMiddleware needs the agents of langchain, which is not installed; "
        "pip install 'langchain-memograft[agents]'"
    ) from e

if TYPE_CHECKING:
    from langgraph.runtime import Runtime

__all__ = ["MemograftMiddleware", "MemograftState"]


class MemograftState(AgentState[ResponseT]):
    """State schema of the middleware.

    Type Parameters:
        ResponseT: The type of the structured response. Defaults to `Any`.
    """

    context: Annotated[NotRequired[list[Document]], OmitFromInput]
    """Documents of the current human turn, highest-ranked first: the sources of its answer."""

    context_of: Annotated[NotRequired[str | None], PrivateStateAttr]
    """Id of the human message that `context` was retrieved for."""


class MemograftMiddleware(AgentMiddleware[MemograftState[ResponseT], ContextT, ResponseT]):
    """Passes documents to `ChatMemograft`, which memorizes them, in agents of `create_agent` of langchain.

    With a retriever, documents are retrieved once for each human message. Without one, the documents are those that
    tools return as artifacts (`@tool(response_format="content_and_artifact")`), which `ChatMemograft` takes from the
    messages. In both cases they are in the state under `context`.

    Args:
        retriever: any retriever, or a Runnable from a question to a list of documents. Its errors are not caught.
        k: maximum number of documents; None is the retriever's setting.
        tool_choice: the name of a tool, or "any", that the model must call first in each human turn. After the call it
            has no tools, and answers. For models that cannot choose tools, such as "tiny".

    Raises:
        ValueError: a setting is invalid.
        MissingExtraError: on import, if langchain is not installed.

    Example:
        ```python
        sources = MemograftMiddleware(retriever=store.as_retriever(), k=3)
        agent = create_agent(ChatMemograft(model="tiny"), middleware=[sources])
        result = agent.invoke({"messages": [HumanMessage("What is the capital of Australia?")]})
        result["messages"][-1].text, result["context"]  # the answer and its sources
        ```
    """

    state_schema = MemograftState  # type: ignore[assignment]

    def __init__(
        self,
        *,
        retriever: BaseRetriever | Runnable[str, list[Document]] | None = None,
        k: int | None = None,
        tool_choice: str | None = None,
    ) -> None:
        super().__init__()
        if retriever is not None and not isinstance(retriever, Runnable):
            raise ValueError(
                f"`retriever` must be a retriever or another Runnable, got {type(retriever).__name__}; for a vector "
                "store call `.as_retriever()`"
            )
        if k is not None and (not isinstance(k, int) or isinstance(k, bool) or k < 1):
            raise ValueError(f"`k` must be a whole number of at least 1, or None for the retriever's k, got {k!r}")
        if k is not None and retriever is None:
            raise ValueError(
                f"`k` is the number of documents from the retriever, got {k} without one; pass `retriever`"
            )
        if tool_choice is not None and (not isinstance(tool_choice, str) or not tool_choice):
            raise ValueError(f'`tool_choice` must be the name of a tool, "any" or None, got {tool_choice!r}')
        self.retriever = retriever
        self.k = k
        self.tool_choice = tool_choice
        # `k` is passed only to retrievers, because other Runnables may refuse it; the list is cut to `k` in any case.
        self._options: dict[str, Any] = {"k": k} if k is not None and isinstance(retriever, BaseRetriever) else {}

    def before_model(self, state: MemograftState[ResponseT], runtime: Runtime[ContextT]) -> dict[str, Any] | None:
        """Retrieve at the first model call of a human turn; add the documents of tools at the later ones."""
        query = self._query(state)
        if query is None or self.retriever is None:
            return self._update(state, self._so_far(state))
        return self._update(state, self._checked(self.retriever.invoke(query, **self._options)))

    async def abefore_model(
        self, state: MemograftState[ResponseT], runtime: Runtime[ContextT]
    ) -> dict[str, Any] | None:
        """`before_model` with the retriever's async method."""
        query = self._query(state)
        if query is None or self.retriever is None:
            return self._update(state, self._so_far(state))
        return self._update(state, self._checked(await self.retriever.ainvoke(query, **self._options)))

    def wrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], ModelResponse[ResponseT]],
    ) -> ModelResponse[ResponseT] | AIMessage:
        """Call the model with the turn's documents and the tool that it must call.

        Raises:
            ModelInvalidRequestError: the model is not a `ChatMemograft`, and so does not take documents.
        """
        return handler(self._prepared(request))

    async def awrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], Awaitable[ModelResponse[ResponseT]]],
    ) -> ModelResponse[ResponseT] | AIMessage:
        """`wrap_model_call` for asyncio."""
        return await handler(self._prepared(request))

    def _query(self, state: MemograftState[ResponseT]) -> str | None:
        """The question to retrieve for; None if that was done already, or if there is no question."""
        turn = _turn(state["messages"])
        if not turn or not isinstance(turn[0], HumanMessage) or state.get("context_of") == turn[0].id:
            return None
        return str(turn[0].text) if turn[0].text.strip() else None

    def _so_far(self, state: MemograftState[ResponseT]) -> list[Document]:
        """The documents that were found for this turn already."""
        return list(state.get("context") or ()) if state.get("context_of") == _id_of_turn(state) else []

    def _update(self, state: MemograftState[ResponseT], context: list[Document]) -> dict[str, Any]:
        """The new state: `context`, followed by the documents of tools that are not in it yet."""
        with translated():
            known = {(d.id, d.text) for d in to_documents(context)}
        for item in _artifacts(_turn(state["messages"])):
            for document in from_artifact(item):  # one or none
                if (document.id, document.text) not in known:
                    known.add((document.id, document.text))
                    context.append(item if isinstance(item, Document) else _of_langchain(document))
        return {"context": context, "context_of": _id_of_turn(state)}

    def _checked(self, found: Any) -> list[Any]:
        if not isinstance(found, Sequence) or isinstance(found, str):
            raise MemograftInvalidRequestError(
                f"`retriever` must return a list of documents, got {type(found).__name__}; add a step that returns one"
            )
        return list(found[: self.k])

    def _prepared(self, request: ModelRequest[ContextT]) -> ModelRequest[ContextT]:
        documents = list(request.state.get("context") or ())  # type: ignore[call-overload]
        if self.retriever is not None and documents:  # without a retriever, the model takes them from the messages
            if not isinstance(request.model, ChatMemograft):
                raise MemograftInvalidRequestError(
                    f"MemograftMiddleware passes documents to ChatMemograft, got {type(request.model).__name__}, which "
                    "does not take them; remove the middleware, or put the documents into the prompt of other models"
                )
            settings = request.model_settings
            documents = [*settings.get("documents", ()), *documents]
            request = request.override(model_settings={**settings, "documents": documents})
        if self.tool_choice is None:
            return request
        if any(isinstance(message, AIMessage) for message in _turn(request.messages)):
            return request.override(tools=[], tool_choice=None)
        # create_agent ignores `tool_choice` if there is a response format, so that is left to a later call.
        return request.override(tool_choice=self.tool_choice, response_format=None)


def _artifacts(messages: Sequence[AnyMessage]) -> Iterator[Any]:
    for message in messages:
        if isinstance(message, ToolMessage):
            yield from message.artifact if isinstance(message.artifact, list | tuple) else [message.artifact]


def _of_langchain(document: MemograftDocument) -> Document:
    return Document(page_content=document.text, id=document.id, metadata=dict(document.metadata))


def _id_of_turn(state: MemograftState[Any]) -> str | None:
    turn = _turn(state["messages"])
    return turn[0].id if turn else None


def _turn(messages: Sequence[AnyMessage]) -> Sequence[AnyMessage]:
    """The last human message and all messages after it; all messages if there is no human message."""
    start = max((n for n, message in enumerate(messages) if isinstance(message, HumanMessage)), default=0)
    return messages[start:]
