"""`RemoteEngine`: answers requests with the engine of a server, by the methods of `Engine`."""

from __future__ import annotations

import asyncio
import os
import time
import weakref
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, TypeVar

from memograft.client.loop import Loop
from memograft.client.protocol import Assembled, Protocol
from memograft.client.wire import ServedAnswer, report_from_json
from memograft.documents import as_documents
from memograft.errors import EngineClosedError, MissingExtraError, ServerError, SettingsError
from memograft.memory.served import ServedMemory
from memograft.request import Answer, Request
from memograft.serving.front import Answers, Documents
from memograft.serving.queue import Job
from memograft.storage.disk import JsonObject
from memograft.storage.process import OfOneProcess

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from memograft.memory.base import Memory

__all__ = ["RemoteEngine"]

T = TypeVar("T")

_CONNECT = 10.0  # seconds for a connection
_LIST = 30.0  # seconds for the list of models
_OWNER = "memograft"  # `owned_by` of the models of `memograft serve`


class RemoteEngine(Answers, OfOneProcess, instead="make one in each process: RemoteEngine(base_url, model)"):
    """Answers questions with documents on a server: `memograft serve`, or another one with OpenAI's protocol.

    A server of Memograft (its list of models says so) answers as an `Engine` with its model would. Other servers, such
    as vLLM with exported memories, get the documents in the prompt, and have the memories that they have: adapters,
    asked for by their names as `model` or `memory`.

    Args:
        base_url: of the protocol, such as "http://localhost:8000/v1".
        model: the id of the model, or of an adapter.
        api_key: the server's key for this client; None if it needs none.
        max_batch: maximum number of requests that are in progress at once; further ones wait.
        max_retries: how often a request is sent again if the server is busy or cannot be reached, not after a timeout.

    Raises:
        ServerError: the server cannot be reached, refuses the key, or has no such model.
        MissingExtraError: openai is not installed.

    Example:
        ```python
        engine = RemoteEngine("http://localhost:8000/v1", "tiny")
        engine.answer("What is the capital of France?").text
        ```
    """

    def __init__(
        self, base_url: str, model: str, *, api_key: str | None = None, max_batch: int = 64, max_retries: int = 2
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise SettingsError(f"`base_url` must begin with http:// or https://, got {base_url!r}")
        if max_batch < 1:
            raise SettingsError(f"`max_batch` must be at least 1, got {max_batch}")
        self.base_url, self.model, self.max_batch = base_url, model, max_batch
        self._room = asyncio.Semaphore(max_batch)
        self._process = os.getpid()
        self._client = _client(base_url, api_key, max_retries)
        self._loop = Loop()
        self._end = weakref.finalize(self, self._loop.end, self._client.close)
        try:
            self._protocol = self._run(self._found())
        except BaseException:
            self.close()
            raise

    @property
    def is_memograft(self) -> bool:
        """Whether the server is Memograft's; others cannot memorize."""
        from memograft.client.ours import Ours

        return isinstance(self._protocol, Ours)

    @property
    def max_length(self) -> int:
        """Maximum number of tokens of prompt and answer together.

        Raises:
            SettingsError: the server does not tell.
        """
        if self._protocol.max_length is None:
            raise SettingsError(
                f"the server at {self.base_url} does not tell the window of {self.model!r}; set it where it is needed"
            )
        return self._protocol.max_length

    @property
    def takes_tools(self) -> bool:
        """Whether tools are passed on, instead of being described in the system message."""
        return self._protocol.takes_tools

    @property
    def takes_system(self) -> bool:
        """Whether there is a place for a system message."""
        return self._protocol.takes_system

    def parse_response(self, answer: Answer) -> JsonObject:
        """The answer as a message, as the server parsed it.

        Raises:
            SettingsError: the server could not parse it, or the request offered no tools.
        """
        message = answer.message if isinstance(answer, ServedAnswer) else None
        if message is None or "error" in message:
            said = "it was not made with `tools`" if message is None else message["error"]
            raise SettingsError(f"the answer was not parsed by the server: {said}")
        return message

    def memorize(self, documents: Documents, memory: Memory | ServedMemory | None = None) -> ServedMemory:
        """Memorize documents on the server, once; the same documents again are the same memory.

        Pass what it returns as `memory=` of later requests. `memory` are settings; without them, the server's are used.
        The server may remove a memory that is not used when it needs the room.

        Raises:
            SettingsError: the server is not Memograft's.
            PromptTooLongError: the documents do not fit the model's window.
        """
        from memograft.client.ours import memory_to_json, pages_of

        if not self.is_memograft:
            raise SettingsError(
                f"the server at {self.base_url} is not Memograft's, and cannot memorize documents; export memories "
                "with `memograft export`, and pass an adapter's name as `memory`; or use `memograft serve`"
            )
        body: JsonObject = {"documents": pages_of(list(as_documents(documents)))}
        if memory is not None and not isinstance(memory, ServedMemory):
            body["memory"] = memory_to_json(memory)
        made = self._run(self._posted("/memories", body))
        report = {**made["report"], "documents": made["report"]["memorized"], "id": made["id"]}
        return ServedMemory(made["id"], tuple(made["documents"]), report_from_json(report))

    @property
    def closed(self) -> bool:
        """Whether `close` was called, or this is a fork of the process that made it."""
        return not self._end.alive or os.getpid() != self._process

    def close(self) -> None:
        """Cancel what is being answered, and close the connections."""
        if os.getpid() == self._process:
            self._end()
            self._loop.join()

    def __enter__(self) -> RemoteEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(self, requests: Sequence[Request], on_text: Callable[[str], None] | None = None) -> list[Job]:
        self._check_open()
        bodies = [self._protocol.body(request) for request in requests]
        jobs = [Job(on_text=on_text, timeout=request.timeout) for request in requests]
        for job, request, body in zip(jobs, requests, bodies, strict=True):
            work = self._loop.run(self._work(job, request, body))
            # A job that was cancelled, or whose time is up, closes its connection.
            job.future.add_done_callback(lambda _, work=work: work.cancel())  # type: ignore[misc]
        return jobs

    async def _work(self, job: Job, request: Request, body: JsonObject) -> None:
        """Do a job."""
        try:
            async with self._room:
                answer = await self._answer(job, request, body)
        except asyncio.CancelledError:
            job.fail(EngineClosedError("the connection to the server was closed before this request was answered"))
            raise
        except Exception as error:
            job.fail(self._failure(error))
        else:
            job.succeed(answer)

    async def _answer(self, job: Job, request: Request, body: JsonObject) -> ServedAnswer:
        from openai import AsyncStream
        from openai.types.chat import ChatCompletion, ChatCompletionChunk

        began, path = time.monotonic(), "/chat/completions"
        if job.on_text is None:
            completion = await self._client.post(path, body=body, cast_to=ChatCompletion)
            return self._protocol.answer(completion.to_dict(), request, time.monotonic() - began)
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        chunks = AsyncStream[ChatCompletionChunk]
        so_far = Assembled()
        async with await self._client.post(
            path, body=body, cast_to=ChatCompletion, stream=True, stream_cls=chunks
        ) as stream:
            async for chunk in stream:
                so_far.add(chunk.to_dict())
                job.emit(so_far.text)
        answer = self._protocol.answer(so_far.completion, request, time.monotonic() - began)
        job.emit(answer.text)
        return answer

    async def _posted(self, path: str, body: JsonObject) -> JsonObject:
        from httpx import Response

        response = await self._client.post(path, body=body, cast_to=Response)
        found: JsonObject = response.json()
        return found

    async def _found(self) -> Protocol:
        """How the server is asked, by its list of models."""
        from memograft.client.ours import Ours
        from memograft.client.plain import Plain

        listed = await self._client.models.list(timeout=_LIST)
        known: dict[str, JsonObject] = {each.id: each.to_dict() for each in listed.data}
        about = known.get(self.model, {})
        if not any(each.get("owned_by") == _OWNER for each in known.values()):
            # vLLM tells the window of a base model, and lists an adapter only after its first use.
            windows = [each["max_model_len"] for each in (about, *known.values()) if each.get("max_model_len")]
            return Plain(self.model, windows[0] if windows else None)
        if "max_model_len" not in about:
            names = [name for name, each in known.items() if "max_model_len" in each]
            raise ServerError(
                f"the server at {self.base_url} has no model {self.model!r}; it has {', '.join(map(repr, names))}",
                status=404,
            )
        return Ours(self.model, about["max_model_len"], about["takes_tools"], about["takes_system"])

    def _run(self, work: Coroutine[None, None, T]) -> T:
        """Wait for a coroutine."""
        try:
            self._check_open()
        except EngineClosedError:
            work.close()
            raise
        future = self._loop.run(work)
        try:
            return future.result()
        except Exception as error:
            raise self._failure(error) from error
        except BaseException:  # Ctrl-C
            future.cancel()
            raise

    def _failure(self, error: Exception) -> Exception:
        from memograft.client.failures import failure

        return failure(error, self.base_url)

    def _check_open(self) -> None:
        if self.closed:
            raise EngineClosedError("the connection to the server is closed, or of another process; make a new one")


def _client(base_url: str, api_key: str | None, max_retries: int) -> AsyncOpenAI:
    """A client without a limit of time for answers, which the requests and the server have."""
    try:
        from openai import AsyncOpenAI, Timeout
    except ModuleNotFoundError as e:
        raise MissingExtraError(
            "a server is asked with openai, which is not installed; pip install 'memograft[client]'"
        ) from e
    # Never the key for OpenAI that may be in the environment.
    timeout = Timeout(None, connect=_CONNECT)
    return AsyncOpenAI(base_url=base_url, api_key=api_key or "none", timeout=timeout, max_retries=max_retries)
