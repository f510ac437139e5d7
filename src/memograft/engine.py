"""`Engine`: answers requests with a model that memorizes their documents first. It runs the stages in order:

    prompt ──> prefill ──> memorize ──> decode ──> answer

Requests of all threads and tasks are decoded together; each has its own memory, and joins as soon as it is prepared
(see `serving/session.py`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from torch import Tensor

from memograft.decoding.ends import end_tokens
from memograft.decoding.tap import Tap
from memograft.documents import as_documents
from memograft.errors import PromptTooLongError, SettingsError
from memograft.memory.bank import Bank, as_bank
from memograft.memory.base import Memory, Model, Task
from memograft.memory.fastmem.memory import FastMem
from memograft.memory.handle import MemoryHandle, fingerprint
from memograft.memory.report import MemoryReport
from memograft.model.backbone import Backbone
from memograft.model.config import of_model
from memograft.model.loading import BUNDLED, PACKAGED, load
from memograft.prompt.builder import PromptBuilder
from memograft.request import Answer, Request
from memograft.serving import scoring
from memograft.serving.front import Answers, Documents
from memograft.serving.keeping import banked, loaded, made
from memograft.serving.queue import Job, Load, Worker
from memograft.serving.scoring import Choice
from memograft.serving.session import Session
from memograft.serving.stream import wait
from memograft.serving.tokens import Tokens
from memograft.serving.work import Work, check, check_fork, resolved
from memograft.storage.process import OfOneProcess

__all__ = ["Engine"]

T = TypeVar("T")


class Engine(Answers, OfOneProcess, instead="make an engine in each process: Engine.from_pretrained(...)"):
    """Answers questions with documents, with or without memorizing them.

    Args:
        model: a causal LM of transformers, with any dtype, device map or quantisation. It is never changed.
        tokenizer: its (fast) tokenizer; or a `PromptBuilder` of it, which then builds the prompts.
        max_length: maximum number of tokens of prompt and answer together; by default from the model's configuration.
        max_batch: maximum number of requests that are decoded together.
        max_stall: seconds for which the preparation of new requests may keep others waiting for their next token.
            "auto": 0.1, and 0.3 on a CPU, where a token itself takes long. Larger values answer more requests a second.
        prompt_lookup: maximum number of tokens that are drafted from the prompt and then verified in one pass; 0 turns
            it off. Answers do not depend on it, except for rounding. See `memograft.decoding.lookup`.
        defaults: settings of FastMem that suit this model, used for settings that a request leaves at "auto".
        bank: keeps memories for later requests about the same documents: a folder, or a `Bank`.

    Raises:
        UnsupportedModelError: the model's last FFN cannot be adapted exactly.
        SettingsError: the tokenizer does not report character offsets.

    Example:
        >>> engine = Engine.from_pretrained("tiny")
        >>> engine.answer("What is the capital of France?").text
        'The capital of France is Paris.'
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_length: int | None = None,
        max_batch: int = 16,
        max_stall: float | Literal["auto"] = "auto",
        prompt_lookup: int = 8,
        defaults: Mapping[str, Any] | None = None,
        bank: Bank | str | Path | None = None,
    ) -> None:
        if max_batch < 1:
            raise SettingsError(f"`max_batch` must be at least 1, got {max_batch}")
        if prompt_lookup < 0:
            raise SettingsError(f"`prompt_lookup` must be at least 0 tokens, got {prompt_lookup}")
        if max_stall != "auto" and not max_stall > 0:
            raise SettingsError(f'`max_stall` must be "auto" or more than 0 seconds, got {max_stall}')
        if max_length is not None and max_length < 2:
            raise SettingsError(f"`max_length` must be None or at least 2 tokens, got {max_length}")
        self._own = dict(defaults or {})
        self.defaults = FastMem().resolved(self._own)
        self._backbone = Backbone.of(model)
        self.fingerprint = fingerprint(self._backbone)
        self._prompts = tokenizer if isinstance(tokenizer, PromptBuilder) else PromptBuilder(tokenizer)
        tokenizer = self._prompts.tokenizer
        self._window = min(max_length or self._backbone.max_length, self._backbone.max_length)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._pad_id = int(pad or 0)
        self._model = Model(self._backbone, self._prompts, self._pad_id, self.fingerprint, as_bank(bank))
        self._tokens = Tokens(self._prompts.tokenizer, self._backbone.vocabulary, end_tokens(self._backbone, tokenizer))
        stall = max_stall if max_stall != "auto" else 0.3 if self._backbone.device.type == "cpu" else 0.1
        self._session = Session(self._model, self._tokens, self._window, max_batch, stall, prompt_lookup)
        self.max_batch = max_batch
        self._worker = Worker(self._run, max_batch, partial(check_fork, self._backbone.device))
        weakref.finalize(self, self._worker.abandon)  # when the engine is garbage-collected, and at exit

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        max_length: int | None = None,
        max_batch: int = 16,
        max_stall: float | Literal["auto"] = "auto",
        prompt_lookup: int = 8,
        bank: Bank | str | Path | None = None,
        device: str | None = None,
        **kwargs: Any,
    ) -> Engine:
        """Load "tiny", "smollm2", a .gguf file, a folder or a Hugging Face id (with `gguf_file=`, a GGUF file there).

        `device` is "cpu", "cuda", "cuda:1", "mps", ...; None is a CUDA GPU if there is one, else the CPU. `kwargs` go
        to AutoModelForCausalLM.from_pretrained. `loading.load` documents dtypes, device maps and errors.
        """
        defaults = {} if str(name) in PACKAGED else of_model(name, BUNDLED, **kwargs)  # not a hub id
        model, tokenizer = load(name, device, **kwargs)
        return cls(
            model,
            tokenizer,
            max_length=max_length,
            max_batch=max_batch,
            max_stall=max_stall,
            prompt_lookup=prompt_lookup,
            defaults=defaults,
            bank=bank,
        )

    @property
    def max_length(self) -> int:
        """Maximum number of tokens of prompt and answer together."""
        return self._window

    @property
    def bank(self) -> Bank | None:
        """Keeps the memories of requests that have no bank of their own."""
        return self._model.bank

    @property
    def model(self) -> Any:
        """The loaded model."""
        return self._backbone.model

    @property
    def tokenizer(self) -> Any:
        """The tokenizer. The engine's thread uses it, so copy it before using it while requests run."""
        return self._prompts.tokenizer

    def memorize(self, documents: Documents, memory: Memory | None = None, *, progress: bool = False) -> MemoryHandle:
        """Memorize documents once and keep the memory. Pass the returned handle as `memory=` of later requests.

        Raises:
            PromptTooLongError: the documents do not fit the model's window.
        """
        docs, settings = as_documents(documents), (memory or FastMem()).resolved(self._own)
        settings.check(self._backbone, self.fingerprint)
        return self._alone(
            lambda task: made(self._model, docs, settings, self._window, replace(task, progress=progress))
        )

    @overload
    def memorize_each(
        self, documents: Documents, memory: Memory | None = None, *, return_exceptions: Literal[False] = False
    ) -> list[MemoryReport]: ...
    @overload
    def memorize_each(
        self, documents: Documents, memory: Memory | None = None, *, return_exceptions: Literal[True]
    ) -> list[MemoryReport | PromptTooLongError]: ...
    def memorize_each(
        self, documents: Documents, memory: Memory | None = None, *, return_exceptions: bool = False
    ) -> list[MemoryReport] | list[MemoryReport | PromptTooLongError]:
        """Memorize each document by itself and keep its memory in the engine's bank; `max_batch` documents at a time.

        A request with this document finds the memory there; so does one with several such documents and
        `FastMem(compose=True)`. A document whose memory is in the bank is not read again: its report says `reused`.
        The others' reports have the memory's `id`, or a `reason` if the bank keeps none of them.

        With `return_exceptions`, a document that is too long has its exception instead of a report. Otherwise the
        first one is raised, after all documents were memorized.

        Raises:
            SettingsError: the engine has no bank.
            PromptTooLongError: a document does not fit the model's window.
        """
        if self.bank is None:
            raise SettingsError(
                "`memorize_each` puts memories into the engine's bank, and it has none; pass Engine(..., bank=FOLDER)"
            )
        docs, settings = as_documents(documents), (memory or FastMem()).resolved(self._own)
        settings.check(self._backbone, self.fingerprint)
        found = list[MemoryReport | PromptTooLongError]()
        for start in range(0, len(docs), self.max_batch):
            some = docs[start : start + self.max_batch]
            found += self._alone(partial(banked, self._model, some, settings, self._window))
        errors = [each for each in found if isinstance(each, PromptTooLongError)]
        if errors and not return_exceptions:
            raise errors[0]
        return found

    def load_memory(self, folder: str | Path) -> MemoryHandle:
        """Read a memory written by `MemoryHandle.save`.

        Raises:
            MemoryFormatError: the folder is damaged, incomplete or of another model.
        """
        return self._alone(lambda task: loaded(self._model, folder, self._own, task))

    def next_token_logprobs(self, request: Request) -> Tensor:
        """(V,) float32 log-probabilities of the first new token: after memory and processors, before sampling."""
        return scoring.logprobs_of(*self.tapped([request], [Tap()]))

    def choose(self, question: str, options: Sequence[str], documents: Documents = (), **settings: Any) -> Choice:
        """Choose the most likely of some answers; see `scoring.choose` for the score and for `settings`."""
        return scoring.choose(self, question, options, documents, **settings)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text alone. Safe in any thread."""
        return self._tokens.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, with special tokens. Safe in any thread."""
        return self._tokens.decode(ids)

    @property
    def takes_tools(self) -> bool:
        """Whether the chat template has a place for tools, and the tokenizer can parse calls in a response."""
        return self._prompts.has_native_tools and self._tokens.parses_responses

    @property
    def takes_system(self) -> bool:
        """Whether the chat template has a place for a system message."""
        return self._prompts.has_system

    def parse_response(self, answer: Answer) -> dict[str, Any]:
        """The answer as a message: `role`, `content`, and if the model wrote them `tool_calls` and similar fields.

        Raises:
            SettingsError: the tokenizer has no `response_template`.
        """
        return self._tokens.parse_response(answer.token_ids, answer.prompt_ids)

    @property
    def load(self) -> Load:
        """Numbers of requests that run and that wait to begin."""
        return self._worker.load

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._worker.closed

    def close(self) -> None:
        """Finish what is being answered, fail waiting requests and end the thread. The model stays as it is."""
        self._worker.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(
        self, requests: Sequence[Request], on_text: Callable[[str], None] | None = None, taps: Sequence[Tap] = ()
    ) -> list[Job]:
        requests = [resolved(request, self._own) for request in requests]
        for request in requests:
            check(request, self._backbone, self.fingerprint)
        jobs = [Job(Work(request), on_text=on_text, timeout=request.timeout) for request in requests]
        for job, tap in zip(jobs, taps, strict=False):
            job.payload.tap = tap
        self._worker.submit(jobs)
        return jobs

    def _alone(self, call: Callable[[Task], T]) -> T:
        """Run a function while no other work uses the model, and wait for its result."""
        job = Job(call=call)
        self._worker.submit([job])
        (result,) = wait([job])
        if isinstance(result, BaseException):
            raise result
        return result  # type: ignore[no-any-return]

    def with_model(self, call: Callable[[Backbone, PromptBuilder], T]) -> T:
        """Run a function with the model's parts, while no other work uses them. `Datastore` uses it."""
        return self._alone(lambda _: call(self._backbone, self._prompts))

    def tapped(self, requests: Sequence[Request], taps: Sequence[Tap]) -> list[Tap]:
        """Run requests with one tap each, and return the taps."""
        for result in wait(self._submit(requests, taps=taps)):
            if isinstance(result, BaseException):
                raise result
        return list(taps)

    def _run(self, jobs: list[Job], more: Callable[[int], list[Job]]) -> None:
        self._session.run(jobs, more)
