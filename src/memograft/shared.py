"""One engine for everybody in the process who wants the same model with the same settings. Knows no framework.

It stands above the engine: no room of the core may import it, and importing it loads no torch.
"""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memograft.errors import SettingsError
from memograft.memory.bank import check_bank

if TYPE_CHECKING:
    from memograft.engine import Engine

__all__ = ["one_bank", "refuse_bank", "shared_engine"]

_engines: weakref.WeakValueDictionary[str, Engine] = weakref.WeakValueDictionary()
_loading: dict[str, threading.Lock] = {}
_lock = threading.Lock()


def shared_engine(model: str | Path, **settings: Any) -> Engine:
    """The engine of `Engine.from_pretrained(model, **settings)`, loaded at the first call, for as long as it is held.

    Blocks while the model loads: call it in a thread (`asyncio.to_thread`) from asyncio. An engine that was closed is
    replaced by a new one. A folder as `bank` counts by its path, a `Bank` by itself: two banks of one folder are two.

    Raises:
        SettingsError: the bank is neither.

    Example:
        >>> shared_engine("tiny") is shared_engine("tiny")
        True
    """
    from memograft.engine import Engine

    bank = settings.pop("bank", None)
    check_bank(bank)
    if bank is not None:  # a folder stays where it is, wherever the process goes from here
        settings["bank"] = os.path.abspath(bank) if isinstance(bank, str | Path) else bank
    key = _key(model, settings)
    with _lock:
        loading = _loading.setdefault(key, threading.Lock())
    with loading:  # several threads that want one model load it once; those that want another do not wait
        engine = _engines.get(key)
        if engine is None or engine.closed:
            engine = _engines[key] = Engine.from_pretrained(model, **settings)
        return engine


def one_bank(bank: Any, settings: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(bank, other settings) of what was given by itself and among an engine's settings, where a bank may stand too.

    Raises:
        SettingsError: there are two of them, or it is none.
    """
    others = dict(settings)
    inside = others.pop("bank", None)
    if bank is not None and inside is not None:
        raise SettingsError(f"`bank` was given twice, got {bank!r} and in `model_kwargs` {inside!r}; pass one of them")
    bank = inside if bank is None else bank
    check_bank(bank)
    return bank, others


def refuse_bank(bank: object) -> None:
    """Refuse a bank for an engine that was made without asking for it.

    Raises:
        SettingsError: there is one.
    """
    if bank is not None:
        raise SettingsError(
            f"`bank` cannot be given beside an engine, which has its own or none, got {bank!r}; give it to the engine: "
            "Engine(..., bank=...)"
        )


def _key(model: str | Path, settings: Mapping[str, Any]) -> str:
    """The same for equal settings; what is no JSON value counts by its type and `repr`."""
    if not isinstance(bank := settings.get("bank", ""), str):
        settings = {**settings, "bank": id(bank)}  # its engine holds it: no other gets this number meanwhile
    return json.dumps([str(model), settings], sort_keys=True, default=lambda value: f"{type(value).__name__}:{value!r}")


def _after_fork() -> None:
    """A thread of the parent may have held a lock; it is not here to let it go."""
    global _lock
    _lock = threading.Lock()
    _loading.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
