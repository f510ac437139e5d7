"""`MemograftLLM`: an LLM for prompts as strings, which memorizes the documents of each prompt before it answers.

generate(N prompts) ──> N requests, one user message each ──> Engine.answer_batch ──> LLMResult
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun, Callbacks
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.llms import BaseLLM
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from memograft.errors import RequestTimeoutError

from langchain_memograft._answers import PROVIDER, metadata_of, usage_of
from langchain_memograft._citations import annotations_of
from langchain_memograft._documents import to_documents
from langchain_memograft._errors import MemograftInvalidRequestError, translated
from langchain_memograft._settings import CALL_OPTIONS, AskingSettings, only
from langchain_memograft._stuffed import taken_out, warn_of_context

if TYPE_CHECKING:
    from memograft import Answer, Document, Request, Rtd

__all__ = ["MemograftLLM"]


class MemograftLLM(AskingSettings, BaseLLM):
    """LLM for chains of strings: a prompt becomes a user message, and the output is the answer's text.

    `generate`, `batch` and their async versions run all prompts as one batch. Arguments of a call override the fields;
    a call also takes `documents` (one list for all prompts, or a list for each), `memory` and `memory_id`. LangChain's
    cache is not used for calls with such arguments, because its key for LLMs does not contain them. With a datastore,
    `generation_info` has the citations under "annotations", and the sources under "memograft".

    The relevance of documents is judged for the whole prompt, so instructions in it make that less accurate. Use
    `ChatMemograft` with the instructions in a system message instead.

    Example:
        >>> llm = MemograftLLM(model="tiny")
        >>> llm.invoke("What is the capital of Australia?", documents=["The capital of Australia is Lisbon."])
        'The capital of Australia is Lisbon.'
    """

    @property
    def _llm_type(self) -> str:
        return "memograft-llm"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return self._asking_params

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop or self.stop, **kwargs)
        params["ls_provider"] = PROVIDER
        return params

    def get_token_ids(self, text: str) -> list[int]:
        """Token ids of a text by the model's tokenizer; loads the model if necessary."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self._local("get_token_ids").encode(text)

    def generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """`BaseLLM.generate`. A call with arguments does not use the cache, whose key does not contain them.

        A datastore's folder is opened first, because its version is in the cache key.
        """
        opened = self._past_cache(kwargs)._opened(kwargs)
        return super(MemograftLLM, opened).generate(prompts, stop, callbacks, **kwargs)

    async def agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """`generate` for asyncio."""
        opened = await self._past_cache(kwargs)._aopened(kwargs)
        return await super(MemograftLLM, opened).agenerate(prompts, stop, callbacks, **kwargs)

    def _past_cache(self, kwargs: Mapping[str, Any]) -> MemograftLLM:
        return self.model_copy(update={"cache": False}) if CALL_OPTIONS & kwargs.keys() else self

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        requests = self._requests(prompts, stop, kwargs, self._steering(kwargs))
        engine = self._engine_for(kwargs.get("model"))
        with translated():
            results: list[Any] = engine.answer_batch(requests, return_exceptions=True)
            for _ in range(self._retries(kwargs)):
                late = _late(results)
                again = engine.answer_batch([requests[n] for n in late], return_exceptions=True) if late else []
                _put(results, late, again)
            return self._result(_answers(results), kwargs)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        requests = self._requests(prompts, stop, kwargs, await self._asteering(kwargs))
        engine = await self._aengine_for(kwargs.get("model"))
        with translated():
            results: list[Any] = await asyncio.gather(*map(engine.aanswer, requests), return_exceptions=True)
            for _ in range(self._retries(kwargs)):
                late = _late(results)
                again = await asyncio.gather(*(engine.aanswer(requests[n]) for n in late), return_exceptions=True)
                _put(results, late, again)
            return self._result(_answers(results), kwargs)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        request = only(self._requests([prompt], stop, kwargs, self._steering(kwargs)))
        engine = self._engine_for(kwargs.get("model"))
        with translated(), engine.stream(request) as stream:
            for piece in stream:
                chunk = GenerationChunk(text=piece)
                if run_manager:
                    run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
            yield GenerationChunk(text="", generation_info=self._info(cast("Answer", stream.answer), kwargs))

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        request = only(self._requests([prompt], stop, kwargs, await self._asteering(kwargs)))
        engine = await self._aengine_for(kwargs.get("model"))
        with translated():
            async with engine.astream(request) as stream:
                async for piece in stream:
                    chunk = GenerationChunk(text=piece)
                    if run_manager:
                        await run_manager.on_llm_new_token(piece, chunk=chunk)
                    yield chunk
                yield GenerationChunk(text="", generation_info=self._info(cast("Answer", stream.answer), kwargs))

    def _requests(
        self, prompts: Sequence[str], stop: list[str] | None, given: Mapping[str, Any], rtd: Rtd | None
    ) -> list[Request]:
        self._check_call(given, CALL_OPTIONS)
        documents = _per_prompt(given.get("documents"), len(prompts))
        requests: list[Request] = []
        for prompt, own in zip(prompts, documents, strict=True):
            asked: list[BaseMessage] = [HumanMessage(prompt)]
            found = list(own)
            if not own and self._memory_of(given) is not None:
                asked, found = taken_out(asked)
                if not found:
                    warn_of_context(asked)
            message = {"role": "user", "content": str(asked[0].content)}
            requests += self._request([message], found, stop, given, rtd)
        return requests

    def _retries(self, given: Mapping[str, Any]) -> int:
        retries = given.get("max_retries")
        retries = self.max_retries if retries is None else retries
        if not isinstance(retries, int) or isinstance(retries, bool) or retries < 0:
            raise MemograftInvalidRequestError(f"`max_retries` must be a whole number of 0 or more, got {retries!r}")
        return retries

    def _result(self, answers: Sequence[Answer], given: Mapping[str, Any]) -> LLMResult:
        usages = [answer.usage for answer in answers]
        prompt, completion = sum(u.prompt_tokens for u in usages), sum(u.completion_tokens for u in usages)
        made = [Generation(text=answer.text, generation_info=self._info(answer, given)) for answer in answers]
        n = given.get("n") or self.n
        return LLMResult(
            generations=[made[first : first + n] for first in range(0, len(made), n)],
            llm_output={
                "model_name": given.get("model") or self.model,
                "token_usage": {
                    "prompt_tokens": prompt,
                    "completion_tokens": completion,
                    "total_tokens": prompt + completion,
                },
            },
        )

    def _info(self, answer: Answer, given: Mapping[str, Any]) -> dict[str, Any]:
        info = metadata_of(answer, given.get("model") or self.model) | {"usage_metadata": usage_of(answer)}
        return info | {"annotations": annotations_of(answer, answer.text)} if answer.references else info


def _per_prompt(documents: Any, prompts: int) -> list[tuple[Document, ...]]:
    """The documents of each prompt. A list of lists has one list for each prompt; any other list is for all prompts."""
    nested = isinstance(documents, list | tuple) and any(isinstance(item, list | tuple) for item in documents)
    with translated():
        if not nested:
            return [to_documents(documents)] * prompts
        if len(documents) != prompts:
            raise MemograftInvalidRequestError(
                f"`documents` must be one list for all prompts, or a list for each of them, got {len(documents)} lists "
                f"for {prompts} prompts; pass a list for each prompt, empty if it has no documents"
            )
        return [to_documents(own) for own in documents]


def _late(results: Sequence[Any]) -> list[int]:
    return [n for n, result in enumerate(results) if isinstance(result, RequestTimeoutError)]


def _put(results: list[Any], places: Sequence[int], news: Sequence[Any]) -> None:
    for place, new in zip(places, news, strict=True):
        results[place] = new


def _answers(results: Sequence[Any]) -> list[Answer]:
    """The results; the first error among them is raised."""
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return list(results)
