"""What stands for a datastore in a setting or a call -> how it steers. A folder is opened at its first use.

Imports torch only where somebody has a datastore, and so has it already.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memograft.errors import SettingsError

if TYPE_CHECKING:
    from memograft.rtd.formula import Rtd

__all__ = ["checked", "described", "opened"]


def checked(value: Any) -> Any:
    """The value, if it can stand for a datastore: None, a Datastore, an Rtd, a folder, or what one was `described` as.

    Raises:
        SettingsError: it is none of these.
    """
    if value is None or (isinstance(value, str | Path) and str(value).strip()):
        return value
    from memograft.rtd.datastore import Datastore
    from memograft.rtd.formula import Rtd

    if isinstance(value, Datastore | Rtd):
        return value
    if isinstance(value, Mapping) and isinstance(value.get("datastore"), str | Path):
        if extra := set(value) - {field.name for field in fields(Rtd)}:
            raise SettingsError(f"`datastore` must hold settings of Rtd, got {sorted(map(str, extra))}; leave them out")
        return value
    raise SettingsError(
        f"`datastore` must be a Datastore, Rtd(datastore, ...), the folder of one, or None, got {reprlib.repr(value)}; "
        "make one with `build_datastore`"
    )


def opened(value: Any) -> Rtd | None:
    """How requests are steered by it; reads the folder's files, where it is one.

    Raises:
        SettingsError: it stands for no datastore, or a setting of it is out of its range.
        StoreError: the folder holds none; and see `Datastore.open`.
    """
    if checked(value) is None:
        return None
    from memograft import shared_datastore
    from memograft.rtd.formula import Rtd, as_rtd

    if isinstance(value, Mapping):
        return Rtd(**{**value, "datastore": shared_datastore(value["datastore"])})
    return as_rtd(value)


def described(value: Any) -> Any:
    """The value as JSON knows it: a folder, or settings with a folder. A datastore is never written out."""
    try:
        checked(value)
    except SettingsError:  # it was put there without asking us, and is refused when it is used
        return reprlib.repr(value)
    if value is None:
        return None
    if isinstance(value, str | Path):
        return str(value)
    if isinstance(value, Mapping):
        return {**value, "datastore": str(value["datastore"])}
    from memograft.rtd.formula import Rtd

    if not isinstance(value, Rtd):
        return str(value.path)
    settings = {field.name: getattr(value, field.name) for field in fields(value)}
    return settings | {"datastore": str(value.datastore.path)}
