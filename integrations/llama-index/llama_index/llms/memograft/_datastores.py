"""Convert values of `datastore=` to an `Rtd`. A folder is opened at the first call.

torch is imported only if there is a datastore.
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
    """The value, if it is None, a Datastore, an Rtd, a folder, or a result of `described`.

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
            raise SettingsError(f"`datastore` must have settings of Rtd, got {sorted(map(str, extra))}; leave them out")
        return value
    raise SettingsError(
        f"`datastore` must be a Datastore, Rtd(datastore, ...), the folder of one, or None, got {reprlib.repr(value)}; "
        "make one with `build_datastore`"
    )


def opened(value: Any) -> Rtd | None:
    """The `Rtd` for a value of `datastore=`; opens a folder.

    Raises:
        SettingsError: the value is not a datastore, or a setting is out of its range.
        StoreError: the folder has no datastore; or as `Datastore.open`.
    """
    if checked(value) is None:
        return None
    from memograft import shared_datastore
    from memograft.rtd.formula import Rtd, as_rtd

    if isinstance(value, Mapping):
        return Rtd(**{**value, "datastore": shared_datastore(value["datastore"])})
    return as_rtd(value)


def described(value: Any) -> Any:
    """The value as JSON: a folder, or settings with a folder. The content of a datastore is not included."""
    try:
        checked(value)
    except SettingsError:  # set without validation; the call refuses it
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
