"""`AskingSettings`: the fields for generating answers, and the requests that are made from them and a call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from memograft.chat import unknown_names
from memograft.errors import SettingsError
from memograft.memory.served import ServedMemory
from pydantic import AliasChoices, Field, model_validator

from langchain_memograft._datastore import UsesDatastore, described_datastore
from langchain_memograft._engine import DEFAULT_MEMORY, resolve_memory
from langchain_memograft._errors import MemograftInvalidRequestError, translated

if TYPE_CHECKING:
    from memograft import Cad, Document, Dola, Memory, MemoryHandle, Request, Rtd, Sampling

__all__ = ["CALL_OPTIONS", "AskingSettings", "only"]

# The arguments of a call besides `stop`: names of fields, and arguments that only calls have.
CALL_OPTIONS = frozenset(
    (
        *("cad", "datastore", "documents", "dola", "logit_bias", "max_retries", "max_tokens", "memory", "memory_id"),
        *("min_p", "model", "n", "overflow", "query", "repetition_penalty", "seed", "temperature", "timeout", "top_k"),
        "top_p",
    )
)


class AskingSettings(UsesDatastore):
    """Fields of both the chat model and the LLM. The argument of a call with the same name overrides a field."""

    memory: Any = DEFAULT_MEMORY
    """How documents are memorized: FastMem(...), by default with its default settings; a handle of
    `memorize_documents`; or None to answer without memorizing. With `base_url`, the default is the server's, and a
    string is the id of a memory of the server, or the name of an adapter."""

    temperature: float | None = None
    """0 and None are greedy decoding."""

    top_p: float | None = None
    """Samples from the smallest set of tokens with this total probability; None allows all tokens."""

    top_k: int | None = None
    """Samples from this number of most likely tokens; None allows all tokens."""

    min_p: float | None = None
    """Excludes tokens with less than this fraction of the most likely token's probability; None excludes none."""

    repetition_penalty: float | None = None
    """Above 1, tokens of the prompt and of the answer so far become less likely; None is the model's setting."""

    logit_bias: dict[int, float] | None = None
    """Token ids, each with a number that is added to its logit; -100 practically excludes a token. `get_token_ids`
    returns the ids of a text."""

    n: int = Field(default=1, ge=1)
    """Number of answers to each prompt. `generate` returns all, `invoke` the first. They are equal at temperature 0.
    Streams have one."""

    max_tokens: int | None = None
    """Maximum number of tokens of the answer; None is 256."""

    stop: list[str] | None = Field(default=None, validation_alias=AliasChoices("stop", "stop_sequences"))
    """Strings at which the answer ends; they are not part of it."""

    seed: int | None = None
    """Seed for sampling; with it, answers are reproducible."""

    timeout: float | None = None
    """Seconds after which a call fails; None is no limit."""

    max_retries: int = Field(default=0, ge=0)
    """How often a call is repeated after a timeout. Streams are not repeated."""

    overflow: Literal["error", "drop", "truncate"] = "error"
    """If the prompt is too long: raise, drop the lowest-ranked documents, or truncate them."""

    cad: float | Literal["adaptive"] | None = None
    """Context-aware decoding (arXiv 2305.14739): strength of the contrast with the prompt without documents. "adaptive"
    chooses it for each token (AdaCAD); None is off."""

    dola: Literal["low", "high"] | tuple[int, ...] | None = None
    """DoLa (arXiv 2309.03883): contrast with an earlier layer of the "low" or "high" half, or with one of these layers;
    None is off."""

    @model_validator(mode="after")
    def _check_memory(self) -> Self:
        if self.memory is not None and self.memory != DEFAULT_MEMORY:
            resolve_memory(self.memory, self.base_url)
        return self

    @model_validator(mode="after")
    def _check_sampling(self) -> Self:
        """Refuse fields out of their range before a model is loaded."""
        with translated():
            self._sampling(None, {})
            self._contrasts({})
        return self

    def _check_call(self, given: Mapping[str, Any], known: Iterable[str]) -> None:
        """Refuse unknown arguments of a call.

        Raises:
            ModelInvalidRequestError: an argument is unknown; the error lists the known ones.
        """
        if unknown := unknown_names(given, {*known, "stop"}):
            raise MemograftInvalidRequestError(f"a call of {type(self).__name__} has no {unknown}")

    def _request(
        self,
        messages: Sequence[Mapping[str, Any]],
        documents: Sequence[Document],
        stop: Sequence[str] | None,
        given: Mapping[str, Any],
        rtd: Rtd | None,
        **further: Any,
    ) -> list[Request]:
        """The request to the engine, `n` times with different seeds. Arguments in `given` override the fields.

        `rtd` is the result of `_steering`.

        Raises:
            ModelInvalidRequestError: a value is invalid.
        """
        from memograft import Request

        with translated():
            try:
                request = Request(
                    messages=messages,
                    documents=documents,
                    memory=self._memory_of(given),
                    processors=[*([] if rtd is None else [rtd]), *self._contrasts(given)],
                    sampling=self._sampling(stop, given),
                    overflow=self._setting(given, "overflow"),
                    timeout=self._setting(given, "timeout"),
                    query=given.get("query"),
                    **further,
                )
                return request.copies(self._setting(given, "n"))
            except TypeError as e:  # a comparison with a value that is not a number
                raise SettingsError(f"a setting has a value of the wrong type: {e}; got {dict(given)!r:.200}") from e

    def _setting(self, given: Mapping[str, Any], name: str, default: Any = None) -> Any:
        """The argument of the call, else the object's field, else the default."""
        value = given.get(name)
        value = getattr(self, name) if value is None else value
        return default if value is None else value

    def _sampling(self, stop: Sequence[str] | None, given: Mapping[str, Any]) -> Sampling:
        from memograft import Sampling

        return Sampling(
            max_new_tokens=self._setting(given, "max_tokens", 256),
            temperature=self._setting(given, "temperature", 0.0),
            top_p=self._setting(given, "top_p", 1.0),
            top_k=self._setting(given, "top_k"),
            stop=(self.stop or ()) if stop is None else stop,
            seed=self._setting(given, "seed"),
            min_p=self._setting(given, "min_p", 0.0),
            repetition_penalty=self._setting(given, "repetition_penalty"),
            logit_bias=self._setting(given, "logit_bias", {}),
        )

    def _contrasts(self, given: Mapping[str, Any]) -> list[Cad | Dola]:
        """The contrasts of a call, in which None turns one off."""
        cad, dola = given.get("cad", self.cad), given.get("dola", self.dola)
        if cad is None and dola is None:
            return []
        from memograft.decoding.cad import contrasts  # imports torch

        return contrasts(cad, dola)

    def _memory_of(self, given: Mapping[str, Any]) -> Memory | MemoryHandle | ServedMemory | None:
        if given.get("memory_id") is not None:
            if given.get("memory") is not None:
                raise MemograftInvalidRequestError(
                    "`memory` and `memory_id` both select the memory of a call, got both; pass one of them"
                )
            return self._memory_by_id(given["memory_id"])
        # memory=None means to answer without memorizing
        return resolve_memory(given.get("memory", self.memory), self.base_url)

    @property
    def _asking_params(self) -> dict[str, Any]:
        """All that answers depend on, for cache keys and traces: model, settings, datastore and memories."""
        names = (
            *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "logit_bias", "max_tokens", "stop"),
            *("seed", "n", "overflow", "cad", "dola"),
        )
        params: dict[str, Any] = {"model": self.model, "base_url": self.base_url, "model_kwargs": self.model_kwargs}
        if self.engine is not None:
            params["fingerprint"] = self.engine.fingerprint
        params |= {name: getattr(self, name) for name in names}
        params["memory"] = self._described(self.memory)
        params["datastore"] = described_datastore(self.datastore)
        # A call selects a memory by its `memory_id`, and that can be given to another memory.
        params["memories"] = {name: handle.id for name, handle in sorted(self._held.memories.items())}
        return params

    @staticmethod
    def _described(memory: Any) -> Any:
        """A memory as plain data, for traces and cache keys; equal if the memories give equal answers."""
        if memory is None or isinstance(memory, str | dict):  # a dict is the result of an earlier call
            return memory
        if isinstance(memory, ServedMemory):
            return {"memory_id": memory.id}
        if hasattr(memory, "fingerprint"):
            return {"memory_id": memory.id, "fingerprint": memory.fingerprint}
        return asdict(memory) if is_dataclass(memory) and not isinstance(memory, type) else repr(memory)

    def _described_call(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """A call's arguments, with memory and datastore as plain data."""
        how = {"memory": self._described, "datastore": described_datastore}
        return {name: how[name](value) if name in how else value for name, value in given.items()}


def only(requests: Sequence[Request]) -> Request:
    """The only request, for a stream.

    Raises:
        ModelInvalidRequestError: there are several requests.
    """
    if len(requests) != 1:
        raise MemograftInvalidRequestError(
            f"`n` must be 1 for a stream, got {len(requests)}; use `generate`, or a stream for each answer"
        )
    return requests[0]
