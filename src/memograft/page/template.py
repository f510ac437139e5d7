"""Render templates with escaped texts, and write files atomically."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from memograft.errors import MissingExtraError, SettingsError
from memograft.page.colors import LEVELS, SHARES, level, share_level

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["check", "filled", "write"]


def filled(template: str, **values: object) -> str:
    """Render a template of `memograft/templates`.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("the HTML page needs jinja2, which is not installed; run pip install jinja2") from error
    loader = PackageLoader("memograft")
    environment = Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters |= {"level": level, "share_level": share_level, "lines": _lines}
    environment.globals |= {"levels": LEVELS, "shares": SHARES}
    return environment


def _lines(text: str) -> str:
    """Remove empty lines."""
    return re.sub(r"\n+", "\n", text)


def check(path: Path) -> None:
    """Refuse a path that `write` cannot write, before there is anything to write.

    Raises:
        SettingsError: it cannot be written.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        draft = _draft(path)
        draft.touch()
        draft.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def write(path: Path, html: str) -> None:
    """Write the page atomically.

    Raises:
        SettingsError: it cannot be written.
    """
    draft = _draft(path)
    try:
        with draft.open("w", encoding="utf-8", errors="replace") as file:
            file.write(html)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise _unwritable(path, error) from error


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def _unwritable(path: Path, error: OSError) -> SettingsError:
    return SettingsError(f"{path} cannot be written ({error.strerror or error}); name another file")
