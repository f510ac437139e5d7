"""`UsesDatastore`: the field `datastore` for reference trustable decoding (RTD), and methods to build datastores.

A folder is opened at the first call, in async methods in a thread. It stays open, and is opened again after it was
changed. Importing the module and creating objects do not open folders.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from langchain_core.runnables.config import run_in_executor
from memograft.errors import MemograftError
from memograft.shared import refuse_local
from pydantic import field_validator, model_validator

from langchain_memograft._engine import UsesEngine
from langchain_memograft._errors import translated
from langchain_memograft._examples import to_examples

if TYPE_CHECKING:
    from memograft import Datastore, Rtd

__all__ = ["UsesDatastore", "described_datastore"]


class UsesDatastore(UsesEngine):
    """The field `datastore` and the methods that build datastores."""

    datastore: Any = None
    """Examples that influence answers and are cited: a Datastore of `build_datastore`, its folder, Rtd(datastore,
    weight=...) for other settings than the defaults, or None."""

    @field_validator("datastore")
    @classmethod
    def _check_datastore(cls, value: Any) -> Any:
        if value is None or (isinstance(value, str | Path) and str(value).strip()):
            return value  # a folder is opened at the first call
        from memograft.rtd.formula import as_rtd

        as_rtd(value)
        return value

    @model_validator(mode="after")
    def _check_datastore_is_the_engines(self) -> Self:
        if self.engine is not None and self.datastore is not None and not isinstance(self.datastore, str | Path):
            self.datastore.check(self.engine.fingerprint)
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Copy the object; the copy shares the engine, the open datastore and the bank."""
        live = (self.engine, self.datastore, self.bank)
        return super().__deepcopy__({**(memo or {}), **{id(one): one for one in live if one is not None}})

    def build_datastore(
        self,
        examples: Iterable[Any],
        *,
        path: str | Path | None = None,
        index: Literal["flat", "hnsw", "ivfpq", "sq8"] = "flat",
        place: Literal["ffn_input", "head_input"] = "ffn_input",
        stride: int | None = None,
        batch_size: int = 16,
        progress: bool = True,
    ) -> Datastore:
        """Build a datastore from examples, or add examples to the one at `path`, except those that it already has.

        Args:
            examples: any mix of LangChain Documents (raw text), conversations (lists of messages: each AI message with
                text is an answer to the messages before it), (messages, answer), (prompt, answer), (documents,
                question, answer), texts, and mappings as for `Datastore.build`. Documents are taken from messages as in
                a call. Metadata that is not JSON is converted to text.
            path: folder of the datastore; None for a temporary one, which is deleted with the datastore.
            index: "flat" (exact), "hnsw", "ivfpq" or "sq8".
            place: "ffn_input" (does not depend on memories) or "head_input" (the paper's).
            stride: tokens between the windows over a raw text; None for half a window.
            batch_size: number of examples per prefill.
            progress: whether to show a progress bar on a terminal.

        Raises:
            ModelInvalidRequestError: an item is not an example; if `examples` is a list, nothing was added. Or the
                folder has a datastore of another model, or another process writes to it.
            ContextOverflowError: an example does not fit into the model's context window; examples before it were
                added.

        Example:
            >>> from langchain_memograft import ChatMemograft
            >>> chat = ChatMemograft(model="tiny")
            >>> store = chat.build_datastore([("What is the capital of Velmora?", "Torstad.")], progress=False)
            >>> len(store.ids())
            1
        """
        from memograft import Datastore

        with translated():
            to_examples(examples)  # refuses a list with invalid examples before the model is loaded
            engine = self._local("build_datastore")
            found = to_examples(examples, takes_tools=engine.takes_tools)
            return Datastore.build(
                engine,
                found,
                path=path,
                place=place,
                index=index,
                stride=stride,
                batch_size=batch_size,
                progress=progress,
            )

    async def abuild_datastore(self, examples: Iterable[Any], **settings: Any) -> Datastore:
        """`build_datastore` in a thread. If the task is cancelled, the thread runs to its end."""
        return await run_in_executor(None, lambda: self.build_datastore(examples, **settings))

    def add_to_datastore(
        self,
        datastore: Datastore,
        examples: Iterable[Any],
        *,
        stride: int | None = None,
        batch_size: int = 16,
        progress: bool = True,
    ) -> int:
        """Add examples in the forms of `build_datastore`; returns the number of new ones.

        Raises:
            ModelInvalidRequestError, ContextOverflowError: as in `build_datastore`; or the datastore is read-only.
        """
        engine = self._local("add_to_datastore")
        with translated():
            datastore.check(engine.fingerprint)
            found = to_examples(examples, takes_tools=engine.takes_tools)
            return datastore.add(engine, found, stride=stride, batch_size=batch_size, progress=progress)

    async def aadd_to_datastore(self, datastore: Datastore, examples: Iterable[Any], **settings: Any) -> int:
        """`add_to_datastore` in a thread."""
        return await run_in_executor(None, lambda: self.add_to_datastore(datastore, examples, **settings))

    def _steering(self, given: Mapping[str, Any]) -> Rtd | None:
        """The datastore of a call with its settings; a folder is opened if necessary.

        Raises:
            ModelInvalidRequestError: the value is not a datastore.
        """
        value = given.get("datastore", self.datastore)  # datastore=None means to answer without one
        if value is None:
            return None
        if self.base_url is not None:
            with translated():
                refuse_local({"datastore": value})
        from memograft.rtd.formula import as_rtd

        with translated():
            rtd = as_rtd(value)
        if rtd is not None and isinstance(value, str | Path):
            self._held.datastores[str(value)] = rtd  # closed when nothing refers to it
        return rtd

    async def _asteering(self, given: Mapping[str, Any]) -> Rtd | None:
        """`_steering`, which opens in a thread."""
        value = given.get("datastore", self.datastore)
        if value is None or _is_open(value):
            return self._steering(given)
        return await run_in_executor(None, self._steering, given)

    def _opened(self, given: dict[str, Any]) -> Self:
        """This object, or a copy of it, with an open datastore, whose version is needed for caches and traces.

        A datastore in `given` is opened there. After an error it stays as it is, because the run raises the error too,
        and then callbacks receive it.
        """
        value = given.get("datastore", self.datastore)
        if value is not None and not _is_open(value):
            with suppress(MemograftError):
                rtd = self._steering(given)
                if "datastore" not in given:
                    return self.model_copy(update={"datastore": rtd})
                given["datastore"] = rtd
        return self

    async def _aopened(self, given: dict[str, Any]) -> Self:
        """`_opened`, in a thread if a folder has to be opened."""
        value = given.get("datastore", self.datastore)
        if value is None or _is_open(value):
            return self
        return await run_in_executor(None, self._opened, given)


def described_datastore(value: Any) -> Any:
    """A datastore as JSON, for traces and cache keys: an open one by its version, a folder by its name."""
    if value is None or isinstance(value, str | dict):  # a dict is the result of an earlier call
        return value
    if isinstance(value, Path):
        return str(value)
    if _is_open(value):
        settings = {f.name: getattr(value, f.name) for f in fields(value) if f.name != "datastore"}
        return {**described_datastore(value.datastore), **settings}
    about = getattr(value, "header", None)
    if not is_dataclass(about) or isinstance(about, type):
        return repr(value)  # the call refuses it
    header = {k: v for k, v in asdict(about).items() if k != "indexes"}  # they do not change the results
    version = hashlib.sha256(json.dumps([str(value.path), header], sort_keys=True).encode()).hexdigest()[:16]
    return {"folder": value.path.name, "entries": len(value), "version": version}


def _is_open(value: Any) -> bool:
    """Whether the value is an Rtd; checked by its attributes, so that torch is not imported."""
    return hasattr(value, "datastore") and hasattr(value, "weight")
