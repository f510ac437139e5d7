"""Read records from files of JSON objects, one per line or in a list, optionally compressed with gzip or xz."""

from __future__ import annotations

import gzip
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import NoReturn

from memograft.errors import SettingsError
from memograft.evaluation.entry import Entry

__all__ = ["entries"]

_PACKED = {".gz": "gzip", ".xz": "xz"}


def entries(path: str | Path) -> Iterator[Entry]:
    """The objects of a .json or .jsonl file, optionally with .gz or .xz. Lines are read when they are needed.

    A .json file has a list of objects, an object whose `data` is such a list, or one object per line.

    Raises:
        SettingsError: the file is missing or damaged, or has another content.
    """
    path = Path(path)
    if not path.is_file():
        raise SettingsError(f"there is no file {path}; name a .jsonl or .json file of questions (.gz, .xz too)")
    kind = _PACKED.get(path.suffix, "")
    name = path.name.removesuffix(path.suffix) if kind else path.name
    try:
        with _opened(path, kind) as file:
            yield from _whole(path, file.read()) if name.endswith(".json") else _lines(path, file)
    except (gzip.BadGzipFile, lzma.LZMAError, EOFError, zlib.error) as error:
        raise SettingsError(
            f"{path} must be a whole {kind} file, got a damaged one ({error}); pack it again"
        ) from error


def _opened(path: Path, kind: str) -> gzip.GzipFile | lzma.LZMAFile | BufferedReader:
    if kind == "gzip":
        return gzip.open(path, "rb")
    return lzma.open(path, "rb") if kind else path.open("rb")


def _whole(path: Path, raw: bytes) -> Iterator[Entry]:
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # a complete object is followed by another
            yield from _lines(path, raw.splitlines(keepends=True))
            return
        _refuse(f"{path}, line {error.lineno}", f"a file must be JSON ({error})", "write it with json.dump", error)
    except UnicodeDecodeError as error:
        _refuse(str(path), f"a file must be UTF-8, got byte {raw[error.start]:#04x}", "save it as UTF-8", error)
    except RecursionError as error:
        _refuse(str(path), f"a file must be JSON ({error})", "write it with json.dump", error)
    if isinstance(value, dict):
        data = value.get("data")
        value = data if isinstance(data, list) else [value]
    if not isinstance(value, list):
        _refuse(str(path), "a file must hold a list of JSON objects", "write [{...}, ...]")
    for number, fields in enumerate(value, start=1):
        yield Entry(str(path), f"record {number}", fields)


def _lines(path: Path, lines: Iterable[bytes]) -> Iterator[Entry]:
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        place, rule = f"{path}, line {number}", "a line must be"
        try:
            value = json.loads(raw.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            _refuse(place, f"{rule} UTF-8, got byte {raw[error.start]:#04x}", "save the file as UTF-8", error)
        except (json.JSONDecodeError, RecursionError) as error:
            _refuse(place, f"{rule} one JSON object ({error})", "write it with json.dumps", error)
        yield Entry(str(path), f"line {number}", value, "a line")


def _refuse(where: str, rule: str, remedy: str, cause: BaseException | None = None) -> NoReturn:
    raise SettingsError(f"{where}: {rule}; {remedy}") from cause
