"""`Answers`: the methods that ask, for what submits requests as jobs: `Engine`, and `RemoteEngine` of a server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from memograft.documents import Document
from memograft.errors import SettingsError
from memograft.request import Answer, Request, Sampling
from memograft.serving.queue import Job
from memograft.serving.stream import AsyncStream, Stream, wait

if TYPE_CHECKING:
    from memograft.memory.base import Memory
    from memograft.memory.handle import MemoryHandle
    from memograft.memory.served import ServedMemory

__all__ = ["Answers", "Documents"]

Documents = Iterable[Document | str | Mapping[str, object]]


class Answers(ABC):
    """Answers requests, whole or piece by piece, for threads and for asyncio. Subclasses define `_submit`."""

    def answer(
        self,
        question: str | Request,
        documents: Documents = (),
        *,
        memory: Memory | MemoryHandle | ServedMemory | None = None,
        sampling: Sampling | None = None,
        **options: Any,
    ) -> Answer:
        """Answer one question; `options` are further fields of `Request`. Blocks until the answer is complete.

        Raises:
            MemograftError: PromptTooLongError, RequestCancelledError, RequestTimeoutError or EngineClosedError.
            Exception: whatever the request's own processors raise.
        """
        return self.answer_batch([_as_request(question, documents, memory, sampling, options)])[0]

    async def aanswer(
        self,
        question: str | Request,
        documents: Documents = (),
        *,
        memory: Memory | MemoryHandle | ServedMemory | None = None,
        sampling: Sampling | None = None,
        **options: Any,
    ) -> Answer:
        """`answer` for asyncio. Cancelling the task cancels the request."""
        request = _as_request(question, documents, memory, sampling, options)
        return await AsyncStream(lambda _: self._submit([request])[0]).result()

    @overload
    def answer_batch(
        self, requests: Sequence[Request], *, return_exceptions: Literal[False] = False
    ) -> list[Answer]: ...
    @overload
    def answer_batch(
        self, requests: Sequence[Request], *, return_exceptions: Literal[True]
    ) -> list[Answer | Exception]: ...
    def answer_batch(self, requests: Sequence[Request], *, return_exceptions: bool = False) -> Any:
        """Answer requests in mixed batches, each with its own memory. Answers are in the order of the requests.

        With `return_exceptions`, a request's exception is returned in its place. Otherwise the first one is raised,
        after all requests have ended.
        """
        results = wait(self._submit(requests))
        errors = [result for result in results if isinstance(result, BaseException)]
        if errors and not return_exceptions:
            raise errors[0]
        return results

    def stream(self, request: Request) -> Stream:
        """Iterate over pieces of the answer; `.answer` is the whole afterwards. Closing it cancels the request."""
        return Stream(lambda on_text: self._submit([request], on_text)[0])

    def astream(self, request: Request) -> AsyncStream:
        """`stream` for `async for`."""
        return AsyncStream(lambda on_text: self._submit([request], on_text)[0])

    @abstractmethod
    def _submit(self, requests: Sequence[Request], on_text: Callable[[str], None] | None = None) -> list[Job]:
        """Begin requests, each as a job whose result is its answer."""


def _as_request(
    question: str | Request,
    documents: Documents,
    memory: Memory | MemoryHandle | ServedMemory | None,
    sampling: Sampling | None,
    options: Mapping[str, Any],
) -> Request:
    """Make a request from the arguments of `answer`."""
    if not isinstance(question, Request):
        return Request(question, documents=documents, memory=memory, sampling=sampling or Sampling(), **options)  # type: ignore[arg-type]
    if documents or memory is not None or sampling is not None or options:
        raise SettingsError("a Request already holds its documents, memory and sampling; use dataclasses.replace")
    return question
