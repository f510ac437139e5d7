"""`Engine`: a model that memorizes the documents of a request before it answers it. The only file that knows the order.

    prompt ──> prefill ──> memorize ──> decode ──> answer

Requests of any number of threads and tasks meet in one queue and run as mixed batches on one thread, which alone touches
the model; each row of a batch has its own memory.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

import torch

from memograft._queue import Job, Worker
from memograft._stream import AsyncStream, Stream, TextSoFar, wait
from memograft.backbone import Backbone
from memograft.decode import Row, decode
from memograft.documents import Document, as_documents
from memograft.errors import RequestCancelledError, RequestTimeoutError, SettingsError
from memograft.loading import load
from memograft.memory.adapter import Adapter
from memograft.memory.fastmem import FastMem, memorize
from memograft.memory.handle import MemoryHandle
from memograft.memory.report import MemoryReport
from memograft.memory.rows import context_rows, gather, merge
from memograft.overflow import Fitted, fit
from memograft.prefill import Prefill, Prefix, prefill, prefill_prefix
from memograft.prompt import Prompt, PromptBuilder
from memograft.request import Answer, Request, Sampling, Timings, Usage

__all__ = ["Engine"]

Documents = Iterable[Document | str | Mapping[str, Any]]


class Engine:
    """Answers questions with documents, plainly or after memorizing them.

    Args:
        model: a causal LM of transformers; any dtype, device map or quantisation. It is never changed.
        tokenizer: its (fast) tokenizer.
        max_length: tokens of prompt and answer together; by default what the model's configuration says.
        max_batch: requests in one batch at most.

    Raises:
        UnsupportedModelError: the model's last FFN cannot be adapted exactly.
        SettingsError: the tokenizer cannot tell where its tokens lie in the text.

    Example:
        >>> engine = Engine.from_pretrained("tiny")
        >>> engine.answer("What is the capital of France?").text
        'The capital of France is Paris.'
    """

    def __init__(self, model: Any, tokenizer: Any, *, max_length: int | None = None, max_batch: int = 16) -> None:
        if max_batch < 1:
            raise SettingsError(f"`max_batch` must be at least 1, got {max_batch}")
        self._backbone = Backbone.of(model)
        self._prompts = PromptBuilder(tokenizer)
        self._window = min(max_length or self._backbone.max_length, self._backbone.max_length)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._pad_id = int(pad or 0)
        self._worker = Worker(self._run, max_batch)

    @classmethod
    def from_pretrained(cls, name: str | Path, *, max_length: int | None = None, **kwargs: Any) -> Engine:
        """Load a model by its Hugging Face id, by its folder, or the bundled "tiny".

        `kwargs` go to AutoModelForCausalLM.from_pretrained (dtype, device_map, quantization_config, ...). Without them the
        model is loaded in its own dtype onto the GPU if there is one, and in float32 on a CPU.
        """
        model, tokenizer = load(name, **kwargs)
        return cls(model, tokenizer, max_length=max_length)

    @property
    def max_length(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self._window

    @property
    def model(self) -> Any:
        """The model, as it was loaded."""
        return self._backbone.model

    @property
    def tokenizer(self) -> Any:
        """The tokenizer. It belongs to the engine's thread: copy it to use it while requests run."""
        return self._prompts.tokenizer

    def answer(
        self,
        question: str | Request,
        documents: Documents = (),
        *,
        memory: FastMem | MemoryHandle | None = None,
        sampling: Sampling | None = None,
        **options: Any,
    ) -> Answer:
        """Answer one question; `options` are further fields of `Request`. Blocks until the answer is there.

        Raises:
            PromptTooLongError, RequestCancelledError, RequestTimeoutError, EngineClosedError, and whatever the request's
            own processors raise.
        """
        request = _as_request(question, documents, memory, sampling, options)
        job = self._submit([request])[0]
        return wait(job)  # type: ignore[no-any-return]

    async def aanswer(
        self,
        question: str | Request,
        documents: Documents = (),
        *,
        memory: FastMem | MemoryHandle | None = None,
        sampling: Sampling | None = None,
        **options: Any,
    ) -> Answer:
        """`answer` for asyncio; cancelling the task gives the request up."""
        stream = self.astream(_as_request(question, documents, memory, sampling, options))
        return await stream.result()

    @overload
    def answer_batch(self, requests: Sequence[Request], *, return_exceptions: Literal[False] = False) -> list[Answer]: ...
    @overload
    def answer_batch(
        self, requests: Sequence[Request], *, return_exceptions: Literal[True]
    ) -> list[Answer | Exception]: ...
    def answer_batch(self, requests: Sequence[Request], *, return_exceptions: bool = False) -> Any:
        """Answer requests in mixed batches, each with its own memory; answers come in the order of the requests.

        With `return_exceptions` a request's error stands in its place; else the first one is raised once all have ended.
        """
        jobs = self._submit(requests)
        results: list[Answer | Exception] = []
        for job in jobs:
            try:
                results.append(wait(job, others=jobs))
            except Exception as e:
                results.append(e)
        errors = [r for r in results if isinstance(r, Exception)]
        if errors and not return_exceptions:
            raise errors[0]
        return results

    def stream(self, request: Request) -> Stream:
        """Pieces of the answer as they come; `.answer` holds the whole afterwards. Closing it gives the request up."""
        return Stream(lambda on_text: self._submit([request], on_text)[0])

    def astream(self, request: Request) -> AsyncStream:
        """`stream` for `async for`."""
        return AsyncStream(lambda on_text: self._submit([request], on_text)[0])

    def memorize(self, documents: Documents, memory: FastMem | None = None, *, progress: bool = False) -> MemoryHandle:
        """Memorize documents once and keep the memory: pass the handle as `memory=` of later requests.

        Raises:
            PromptTooLongError: the documents do not fit the model's window.
        """
        docs, settings = as_documents(documents), memory or FastMem()
        settings.check(self._backbone)
        job = Job(call=lambda cancelled: self._make_handle(docs, settings, cancelled, progress))
        self._worker.submit([job])
        return wait(job)  # type: ignore[no-any-return]

    def load_memory(self, folder: str | Path) -> MemoryHandle:
        """Read a memory written by `MemoryHandle.save`.

        Raises:
            MemoryFormatError: the folder is damaged, incomplete or of another model.
        """

        def read(_: Callable[[], bool]) -> MemoryHandle:
            handle = MemoryHandle.load(folder, self._backbone)
            return replace(handle, prefix=self._prefix_of(handle.documents))

        job = Job(call=read)
        self._worker.submit([job])
        return wait(job)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Finish the batch that runs, fail what waits, end the thread. The model stays loaded and untouched."""
        self._worker.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if worker := getattr(self, "_worker", None):
            worker.close()

    def _submit(self, requests: Sequence[Request], on_text: Callable[[str], None] | None = None) -> list[Job]:
        for request in requests:
            if settings := _settings(request):
                settings.check(self._backbone)
        jobs = [Job(_Work(request), on_text=on_text) for request in requests]
        if jobs:
            self._worker.submit(jobs)
        return jobs

    def _run(self, jobs: list[Job]) -> None:
        """Answer a batch. If it fails as a whole, its requests are tried one by one, so that only the culprit suffers."""
        ready = [job for job in jobs if self._fit(job)]
        for group in self._groups(ready):
            try:
                self._answer(group)
            except Exception as e:
                if len(group) == 1:
                    group[0].fail(e)
                    continue
                for job in group:
                    self._run([job])

    def _fit(self, job: Job) -> bool:
        """1. Prompt: of one request; False if the request has ended here."""
        work: _Work = job.payload
        try:
            if job.cancelled():
                raise RequestCancelledError("the request was cancelled before it was started")
            if work.deadline is not None and time.monotonic() > work.deadline:
                raise RequestTimeoutError("the request's `timeout` passed while it waited; allow more time")
            work.fitted = fit(self._prompts, work.request, work.documents, self._window)
        except Exception as e:
            job.fail(e)
            return False
        return True

    def _groups(self, jobs: list[Job]) -> list[list[Job]]:
        """Requests that can be prefilled together: without a reused prefix, or with the same one."""
        groups: dict[Any, list[Job]] = {}
        for job in jobs:
            prefix = job.payload.prefix
            # Padding between a prefix and what follows would shift a sliding window.
            alike = len(job.payload.prompt.ids) if prefix is not None and _slides(prefix) else None
            groups.setdefault((id(prefix) if prefix is not None else None, alike), []).append(job)
        return list(groups.values())

    def _answer(self, jobs: list[Job]) -> None:
        works: list[_Work] = [job.payload for job in jobs]
        clock = [time.perf_counter()]

        # 2. Prefill: keys and values that are right under every memory.
        filled = prefill(self._backbone, [w.prompt.ids for w in works], self._pad_id, works[0].prefix)
        clock.append(time.perf_counter())

        # 3. Memorize: one adapter per request that asks for one.
        memories = self._memories(jobs, filled)
        clock.append(time.perf_counter())

        # 4. Decode, over the same cache.
        rows = [self._row(job, adapter) for job, (adapter, _) in zip(jobs, memories, strict=True)]
        decode(self._backbone, filled, rows, self._prompts.tokenizer)
        clock.append(time.perf_counter())

        # 5. Answer.
        timings = Timings(*(b - a for a, b in zip(clock, clock[1:], strict=False)))
        for job, row, (_, report) in zip(jobs, rows, memories, strict=True):
            if row.error is not None:
                job.fail(row.error)
            else:
                job.succeed(self._result(job, row, report, filled, timings))

    def _memories(self, jobs: list[Job], filled: Prefill) -> list[tuple[Adapter | None, MemoryReport | None]]:
        """An adapter (or None) and a report per request; those with the same settings are memorized together."""
        results: list[tuple[Adapter | None, MemoryReport | None]] = [(None, None)] * len(jobs)
        together: dict[FastMem, list[int]] = {}
        for n, job in enumerate(jobs):
            memory = job.payload.request.memory
            if isinstance(memory, MemoryHandle):
                results[n] = (memory.adapter, replace(memory.report, seconds=0.0))
            elif isinstance(memory, FastMem):
                together.setdefault(memory, []).append(n)
        for settings, members in together.items():
            prompts = [jobs[n].payload.prompt for n in members]
            made = self._memorize(settings, prompts, filled, members, lambda: all(j.cancelled() for j in jobs))
            for n, result in zip(members, made, strict=True):
                results[n] = result
        return results

    def _memorize(
        self,
        settings: FastMem,
        prompts: Sequence[Prompt],
        filled: Prefill | None,
        members: Sequence[int],
        cancelled: Callable[[], bool],
        progress: bool = False,
    ) -> list[tuple[Adapter | None, MemoryReport]]:
        if settings.template == "assistant":
            prompts = [self._prompts.as_assistant(p.documents) if p.documents else p for p in prompts]
            filled, members = prefill(self._backbone, [p.ids for p in prompts], self._pad_id), range(len(prompts))
        assert filled is not None
        results = [(None, _nothing(p, settings)) for p in prompts]
        chosen = [n for n, p in enumerate(prompts) if len(p.context) > 1]
        if chosen:
            rows = merge([context_rows(filled, members[n], prompts[n]) for n in chosen])
            try:
                made = memorize(self._backbone, rows, settings, cancelled=cancelled, progress=progress)
            except torch.OutOfMemoryError as e:
                made = [(None, MemoryReport(rolled_back=True, reason=f"out of memory while memorizing: {e}"))] * len(chosen)
            for n, (adapter, report) in zip(chosen, made, strict=True):
                results[n] = (adapter, replace(report, documents=tuple(d.id for d in prompts[n].documents)))
        return results

    def _row(self, job: Job, adapter: Adapter | None) -> Row:
        work: _Work = job.payload
        settings = _settings(work.request)
        gated = adapter is not None and settings is not None and settings.gate == "support"
        text = TextSoFar(self._prompts.decode, work.sampling.stop) if job.on_text is not None else None
        return Row(
            sampling=work.sampling,
            max_new_tokens=min(work.sampling.max_new_tokens, self._window - len(work.prompt.ids)),
            adapter=adapter,
            supported={work.prompt.ids[t] for t in work.prompt.context} if gated else None,
            processors=work.request.processors,
            on_tokens=None if text is None else lambda tokens: job.emit(text(tokens)),
            cancelled=job.cancelled,
            deadline=work.deadline,
        )

    def _result(self, job: Job, row: Row, report: MemoryReport | None, filled: Prefill, timings: Timings) -> Answer:
        work: _Work = job.payload
        assert work.fitted is not None
        assert row.finish_reason
        text = TextSoFar(self._prompts.decode, work.sampling.stop).final(row.tokens)
        job.emit(text)
        return Answer(
            text=text,
            token_ids=tuple(row.tokens),
            finish_reason=row.finish_reason,
            usage=Usage(len(work.prompt.ids), filled.cached, len(row.tokens)),
            memory=report,
            timings=timings,
            documents=work.prompt.documents,
            dropped=work.fitted.dropped,
            truncated=work.fitted.truncated,
        )

    def _make_handle(
        self, documents: tuple[Document, ...], settings: FastMem, cancelled: Callable[[], bool], progress: bool
    ) -> MemoryHandle:
        fitted = fit(self._prompts, Request("?", documents=documents, sampling=Sampling(1)), documents, self._window)
        prefix = self._prefix_of(documents)
        filled = prefill(self._backbone, [fitted.prompt.ids], self._pad_id, prefix)
        adapter, report = self._memorize(settings, [fitted.prompt], filled, [0], cancelled, progress)[0]
        return MemoryHandle.new(self._backbone, documents, settings, report, adapter, prefix)

    def _prefix_of(self, documents: tuple[Document, ...]) -> Prefix | None:
        """Keys and values of a prompt up to the end of its documents."""
        ids = gather(self._prompts.build([{"role": "user", "content": "?"}], documents))
        return prefill_prefix(self._backbone, ids) if ids else None


class _Work:
    """A request on its way: what was fixed when it came in, and its prompt once that is built."""

    def __init__(self, request: Request) -> None:
        self.request = request
        # A seed drawn now makes a batch that is tried again say the same.
        seed = request.sampling.seed if request.sampling.seed is not None else random.getrandbits(62)
        self.sampling = replace(request.sampling, seed=seed)
        self.deadline = None if request.timeout is None else time.monotonic() + request.timeout
        self.handle = request.memory if isinstance(request.memory, MemoryHandle) else None
        self.documents: tuple[Document, ...] = tuple(as_documents(request.documents))
        if not self.documents and self.handle is not None:
            self.documents = self.handle.documents
        self.fitted: Fitted | None = None

    @property
    def prompt(self) -> Prompt:
        assert self.fitted is not None, "the prompt is built first"
        return self.fitted.prompt

    @property
    def prefix(self) -> Prefix | None:
        """The handle's keys and values, where the prompt begins with exactly their tokens."""
        prefix = self.handle.prefix if self.handle else None
        return prefix if prefix is not None and self.prompt.ids[: len(prefix.ids)] == prefix.ids else None


def _as_request(
    question: str | Request, documents: Documents, memory: Any, sampling: Sampling | None, options: Mapping[str, Any]
) -> Request:
    if isinstance(question, Request):
        if documents or memory is not None or sampling is not None or options:
            raise SettingsError("a Request already holds its documents, memory and sampling; use dataclasses.replace")
        return question
    return Request(question, documents=tuple(documents), memory=memory, sampling=sampling or Sampling(), **options)


def _settings(request: Request) -> FastMem | None:
    return request.memory.settings if isinstance(request.memory, MemoryHandle) else request.memory


def _nothing(prompt: Prompt, settings: FastMem) -> MemoryReport:
    what = "no documents" if not prompt.documents else f"documents of {len(prompt.context)} tokens"
    return MemoryReport(
        reason=f"nothing to memorize: the request has {what}", documents=tuple(d.id for d in prompt.documents)
    )


def _slides(prefix: Prefix) -> bool:
    return any(getattr(layer, "is_sliding", False) for layer in prefix.kv_cache.layers)
