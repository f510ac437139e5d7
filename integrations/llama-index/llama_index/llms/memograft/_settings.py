"""The settings of `Memograft`, with checks before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from llama_index.core.bridge.pydantic import (
    ConfigDict,
    Field,
    SecretStr,
    field_serializer,
    field_validator,
    model_validator,
)
from llama_index.llms.memograft import _datastores
from llama_index.llms.memograft._calls import (
    DEFAULT_MEMORY,
    checked_retries,
    contrasts_of,
    memory_of,
    refuse_unknown,
    renamed,
)
from llama_index.llms.memograft._errors import named
from llama_index.llms.memograft._function_calling import FunctionCalling
from memograft.memory.bank import place_of
from memograft.request import Sampling
from memograft.shared import one_bank, refuse_local

__all__ = ["Settings"]


class Settings(FunctionCalling):
    """The fields of `Memograft`, which documents them. They have ChatMemograft's names. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    model: str = Field(default="tiny", description="Hugging Face id, folder, .gguf file, 'smollm2' or 'tiny'.")
    memory: Any = Field(default=DEFAULT_MEMORY, description="FastMem(...), a memory, its id on a server, or None.")
    datastore: Any = Field(default=None, description="A Datastore, Rtd(...), the folder of one, or None.")
    bank: Any = Field(default=None, description="Keeps memories: a folder, a memograft.Bank, or None.")
    max_tokens: int = Field(default=256, description="Maximum number of tokens of an answer.")
    temperature: float = Field(default=0.0, description="0 is greedy decoding.")
    top_p: float = Field(default=1.0, description="Samples from the smallest set of tokens with this probability.")
    top_k: int | None = Field(default=None, description="Samples from this number of most likely tokens.")
    min_p: float = Field(default=0.0, description="Minimum probability, as a fraction of the most likely token's.")
    repetition_penalty: float | None = Field(default=None, description="Above 1, earlier tokens are less likely.")
    logit_bias: dict[int, float] = Field(default_factory=dict, description="Numbers for logits, by token id.")
    seed: int | None = Field(default=None, description="Seed for sampling.")
    stop: list[str] = Field(default_factory=list, description="Strings at which an answer ends.")
    cad: float | Literal["adaptive"] | None = Field(default=None, description="Context-aware decoding: strength.")
    dola: Literal["low", "high"] | tuple[int, ...] | None = Field(default=None, description="DoLa: which layers.")
    timeout: float | None = Field(default=None, description="Seconds after which a request fails.")
    max_retries: int = Field(default=0, description="How often a request is repeated after a timeout.")
    overflow: Literal["error", "drop", "truncate"] = Field(default="error", description="For prompts too long.")
    logprobs: int | None = Field(default=None, description="Number of most likely tokens at each position.")
    context_delimiters: tuple[str, str] | None = Field(default=None, description="Strings around documents.")
    context_window: int | None = Field(default=None, description="For LlamaIndex's packing of prompts.")
    model_kwargs: dict[str, Any] = Field(default_factory=dict, description="Arguments for loading the model.")
    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False, description="The server's key.")
    base_url: str | None = Field(default=None, description="A server that answers instead of an engine here.")

    @field_validator("memory", mode="before")
    @classmethod
    def _memory(cls, value: Any) -> Any:
        """Convert serialized settings back."""
        if isinstance(value, Mapping):
            from memograft import Memory

            return Memory.from_json({"kind": "fastmem", **value})
        return value

    @field_validator("datastore", mode="before")
    @classmethod
    def _datastore(cls, value: Any) -> Any:
        return _datastores.checked(value)

    @field_serializer("datastore")
    def _plain_datastore(self, value: Any) -> Any:
        return _datastores.described(value)

    @field_serializer("bank")
    def _plain_bank(self, value: Any) -> str | None:
        return place_of(value)

    @field_validator("context_delimiters")
    @classmethod
    def _delimiters(cls, value: tuple[str, str] | None) -> tuple[str, str] | None:
        if value is not None and not all(value):
            raise ValueError(f"`context_delimiters` must be two strings that are not empty, or None, got {value!r}")
        return value

    @field_validator("stop", mode="before")
    @classmethod
    def _stop(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_serializer("memory")
    def _plain_memory(self, value: Any) -> Any:
        """Settings as a mapping; a memory that was made before as its id."""
        if hasattr(value, "id"):
            return value.id
        return value.to_json() if hasattr(value, "to_json") else value

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        """Accept ChatMemograft's names too, refuse unknown names, and move a bank out of `model_kwargs`."""
        if not isinstance(values, Mapping):
            return values  # pydantic raises the error
        values = renamed(values)
        refuse_unknown(cls.__name__, values, [*cls.model_fields, "engine"])
        if not isinstance(kwargs := values.get("model_kwargs", {}), Mapping):
            return values
        bank, kwargs = one_bank(values.get("bank"), kwargs)
        if values.get("base_url") is not None:
            refuse_local({**values, "bank": bank, "model_kwargs": kwargs})
        return {**values, "bank": bank, "model_kwargs": kwargs}

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        with named():
            Sampling(
                max_new_tokens=self.max_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                stop=self.stop,
                seed=self.seed,
                min_p=self.min_p,
                repetition_penalty=self.repetition_penalty,
                logit_bias=self.logit_bias,
            )
            contrasts_of(self.cad, self.dola)
        checked_retries(self.max_retries)
        if self.base_url is not None:
            memory_of(self.memory, self.base_url)
        elif isinstance(self.memory, str | bool | int) and self.memory != DEFAULT_MEMORY:
            raise ValueError(f"`memory` must be FastMem(...), a handle of `memorize`, or None, got {self.memory!r}")
        return self
