"""One engine per process for each model and its settings.

No module of the core imports this one, and importing it does not import torch.
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

__all__ = ["one_bank", "refuse_bank", "refuse_local", "shared_engine"]

_engines: weakref.WeakValueDictionary[str, Engine] = weakref.WeakValueDictionary()
_loading: dict[str, threading.Lock] = {}
_lock = threading.Lock()


def shared_engine(model: str | Path, **settings: Any) -> Engine:
    """Return the engine of `Engine.from_pretrained(model, **settings)`, loaded once and shared while it is in use.

    Blocks while the model loads; in asyncio, use `asyncio.to_thread`. A closed engine is replaced by a new one. A
    folder as `bank` is compared by its path, a `Bank` by identity: two banks of one folder give two engines.

    Raises:
        SettingsError: `bank` is neither.

    Example:
        >>> shared_engine("tiny") is shared_engine("tiny")
        True
    """
    from memograft.engine import Engine

    bank = settings.pop("bank", None)
    check_bank(bank)
    if bank is not None:  # absolute, in case the working directory changes
        settings["bank"] = os.path.abspath(bank) if isinstance(bank, str | Path) else bank
    key = _key(model, settings)
    with _lock:
        loading = _loading.setdefault(key, threading.Lock())
    with loading:  # threads that want the same model wait, others do not
        engine = _engines.get(key)
        if engine is None or engine.closed:
            engine = _engines[key] = Engine.from_pretrained(model, **settings)
        return engine


def one_bank(bank: Any, settings: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(bank, other settings): `bank` may be given as an argument or among the engine's settings.

    Raises:
        SettingsError: both are given, or it cannot be a bank.
    """
    others = dict(settings)
    inside = others.pop("bank", None)
    if bank is not None and inside is not None:
        raise SettingsError(f"`bank` was given twice, got {bank!r} and in `model_kwargs` {inside!r}; pass one of them")
    bank = inside if bank is None else bank
    check_bank(bank)
    return bank, others


def refuse_bank(bank: object) -> None:
    """Refuse a bank beside an engine that was made without it.

    Raises:
        SettingsError: a bank was given.
    """
    if bank is not None:
        raise SettingsError(
            f"`bank` cannot be given beside an engine, which has its own or none, got {bank!r}; give it to the engine: "
            "Engine(..., bank=...)"
        )


# Arguments of objects of a framework that need an engine in this process, and what to do with a server instead.
_LOCAL = {
    "engine": "leave out one of the two",
    "bank": "start the server with `--bank FOLDER`",
    "datastore": "a server has no datastores; leave it out, or load the model here, without `base_url`",
    "model_kwargs": "the server has loaded its model; pass them to `memograft serve`",
}


def refuse_local(settings: Mapping[str, object]) -> None:
    """Refuse arguments beside `base_url` that only an engine of this process can take.

    Raises:
        SettingsError: one is given; the message names it.
    """
    for name, remedy in _LOCAL.items():
        if (value := settings.get(name)) is not None and value != {}:
            raise SettingsError(f"`{name}` cannot be given with `base_url`, got {value!r:.80}; {remedy}")


def _key(model: str | Path, settings: Mapping[str, Any]) -> str:
    """A key that is equal for equal settings. Values that are not JSON are compared by type and `repr`."""
    if not isinstance(bank := settings.get("bank", ""), str):
        settings = {**settings, "bank": id(bank)}  # unique as long as its engine exists
    return json.dumps([str(model), settings], sort_keys=True, default=lambda value: f"{type(value).__name__}:{value!r}")


def _after_fork() -> None:
    """Replace the locks, which a thread of the parent may have held."""
    global _lock
    _lock = threading.Lock()
    _loading.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
