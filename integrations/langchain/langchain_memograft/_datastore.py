"""`UsesDatastore`: examples whose hidden states steer the answers (RTD), and how they become a datastore.

A folder is opened when an answer is asked for, in a thread where that is asyncio's, and kept open from then on; it is
opened anew once somebody has changed it. Importing and building objects opens nothing.
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
from pydantic import field_validator, model_validator

from langchain_memograft._engine import UsesEngine
from langchain_memograft._errors import translated
from langchain_memograft._examples import to_examples

if TYPE_CHECKING:
    from memograft import Datastore, Rtd

__all__ = ["UsesDatastore", "described_datastore"]


class UsesDatastore(UsesEngine):
    """The field `datastore` and the methods that make one."""

    datastore: Any = None
    """Examples that steer answers and are cited in them: a Datastore of `build_datastore`, its folder, Rtd(datastore,
    weight=...) for other settings than the defaults, or None."""

    @field_validator("datastore")
    @classmethod
    def _check_datastore(cls, value: Any) -> Any:
        if value is None or (isinstance(value, str | Path) and str(value).strip()):
            return value  # a folder is opened at its first use
        from memograft.rtd.formula import as_rtd

        as_rtd(value)
        return value

    @model_validator(mode="after")
    def _check_datastore_is_the_engines(self) -> Self:
        if self.engine is not None and self.datastore is not None and not isinstance(self.datastore, str | Path):
            self.datastore.check(self.engine.fingerprint)
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Copy, but for what is live: an engine, an open datastore and a bank are shared."""
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
        """Make a datastore of examples, or go on with the one at `path`: what is in it already is passed over.

        Args:
            examples: any mix of LangChain Documents (raw text), conversations (lists of messages: every AI message with
                text is an answer to what stands before it), (messages, answer), (prompt, answer), (documents,
                question, answer), texts, and mappings as of `Datastore.build`. Documents in messages are found as
                those of a call are; metadata that is not JSON is replaced by its text.
            path: its folder; None for a temporary one that goes with the datastore.
            index: "flat" (exact), "hnsw", "ivfpq" or "sq8".
            place: "ffn_input" (no memory can move it) or "head_input" (the paper's).
            stride: tokens between the windows over a raw text; None for half a window.
            batch_size: examples in one prefill.
            progress: show a bar, on a terminal.

        Raises:
            ModelInvalidRequestError: an item is no example; nothing was learned then, if `examples` is a list. Or the
                folder holds a datastore of another model, or is open for writing elsewhere.
            ContextOverflowError: an example does not fit the model's window; those before it are learned.

        Example:
            >>> from langchain_memograft import ChatMemograft
            >>> chat = ChatMemograft(model="tiny")
            >>> store = chat.build_datastore([("What is the capital of Velmora?", "Torstad.")], progress=False)
            >>> len(store.ids())
            1
        """
        from memograft import Datastore

        with translated():
            to_examples(examples)  # refuses a list with what is no example before the model is loaded
            engine = self._engine_for()
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
        """`build_datastore`, in a thread. Where the task is cancelled, the thread goes on to the end."""
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
        """Learn further examples, as of `build_datastore`; returns how many were new.

        Raises:
            ModelInvalidRequestError, ContextOverflowError: as `build_datastore`; or it is open read-only.
        """
        engine = self._engine_for()
        with translated():
            datastore.check(engine.fingerprint)
            found = to_examples(examples, takes_tools=engine.takes_tools)
            return datastore.add(engine, found, stride=stride, batch_size=batch_size, progress=progress)

    async def aadd_to_datastore(self, datastore: Datastore, examples: Iterable[Any], **settings: Any) -> int:
        """`add_to_datastore`, in a thread."""
        return await run_in_executor(None, lambda: self.add_to_datastore(datastore, examples, **settings))

    def _steering(self, given: Mapping[str, Any]) -> Rtd | None:
        """What steers the answer of a call, opened if need be. Blocks while it is.

        Raises:
            ModelInvalidRequestError: it is no datastore.
        """
        value = given.get("datastore", self.datastore)  # None is a choice: not by any
        if value is None:
            return None
        from memograft.rtd.formula import as_rtd

        with translated():
            rtd = as_rtd(value)
        if rtd is not None and isinstance(value, str | Path):
            self._held.datastores[str(value)] = rtd  # a shared datastore is open for as long as somebody holds it
        return rtd

    async def _asteering(self, given: Mapping[str, Any]) -> Rtd | None:
        """`_steering`, which opens in a thread."""
        value = given.get("datastore", self.datastore)
        if value is None or _is_open(value):
            return self._steering(given)
        return await run_in_executor(None, self._steering, given)

    def _opened(self, given: dict[str, Any]) -> Self:
        """This object, or a copy, whose datastore is open, so that caches and traces can tell what is in it.

        One in `given` is opened there. What cannot be opened is left as it is: the run itself says why, and callbacks
        hear of it.
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
        """`_opened`, in a thread if there is anything to open."""
        value = given.get("datastore", self.datastore)
        if value is None or _is_open(value):
            return self
        return await run_in_executor(None, self._opened, given)


def described_datastore(value: Any) -> Any:
    """What steers answers as JSON, equal where the answers are: contents by their version, folders by their names."""
    if value is None or isinstance(value, str | dict):  # a dict was described already
        return value
    if isinstance(value, Path):
        return str(value)
    if _is_open(value):
        settings = {f.name: getattr(value, f.name) for f in fields(value) if f.name != "datastore"}
        return {**described_datastore(value.datastore), **settings}
    about = getattr(value, "header", None)
    if not is_dataclass(about) or isinstance(about, type):
        return repr(value)  # the call refuses it
    header = {k: v for k, v in asdict(about).items() if k != "indexes"}  # which say how, not what is found
    version = hashlib.sha256(json.dumps([str(value.path), header], sort_keys=True).encode()).hexdigest()[:16]
    return {"folder": value.path.name, "entries": len(value), "version": version}


def _is_open(value: Any) -> bool:
    """Whether it is an Rtd; said without importing torch for it."""
    return hasattr(value, "datastore") and hasattr(value, "weight")
