"""Keys of clients. A file has their hashes; a key itself is shown once, when it is made.

    {"keys": [{"name": "alice", "sha256": "9f86...", "operator": false, "made": "2026-11-29T04:05:06+00:00"}]}

A key has 256 random bits. No list of likely keys exists that could be tried against a stolen file, so one round of
SHA-256 protects it as well as a slow password hash would, and costs nothing for each request.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from memograft.errors import SettingsError
from memograft.storage.disk import sync, told

__all__ = ["Key", "Keys", "add_key", "read_keys", "remove_key"]

_log = logging.getLogger("memograft.server")
_PREFIX = "mg-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Key:
    """A key in a file.

    Attributes:
        name: of its holder: whose requests and memories are kept apart from others'.
        sha256: hash of the key, 64 hex digits.
        operator: whether it may read the server's metrics, which tell about all holders.
        made: time in ISO 8601.
    """

    name: str
    sha256: str
    operator: bool = False
    made: str = ""


class Keys:
    """The keys of a file. A changed file is read again, so that a removed key is refused at once.

    Args:
        file: written by `add_key`.

    Raises:
        SettingsError: there is no such file, it is damaged, or it has no keys.
    """

    def __init__(self, file: str | Path) -> None:
        self._file = Path(file)
        self._version: tuple[int, ...] = self._seen()
        self._keys = read_keys(self._file)
        if not self._keys:
            raise SettingsError(f"{self._file} has no keys, so nobody could use the server; add one: {_command(file)}")

    def find(self, key: str) -> Key | None:
        """The holder of a key. All hashes are compared, each in constant time, so that the time tells nothing."""
        if (version := self._seen()) != self._version:
            self._version = version
            try:
                self._keys = read_keys(self._file)
            except SettingsError as error:
                _log.error("the keys were not read again", extra={"facts": {"reason": str(error)}})
        digest, found = _hash(key), None
        for known in self._keys:
            if hmac.compare_digest(known.sha256, digest):
                found = known
        return found

    def _seen(self) -> tuple[int, ...]:
        try:
            about = self._file.stat()
        except OSError:
            return ()
        return about.st_mtime_ns, about.st_size, about.st_ino


def add_key(file: str | Path, name: str, *, operator: bool = False) -> str:
    """Make a key, add its hash to a file (created if it does not exist), and return the key.

    Raises:
        SettingsError: the name is not valid or exists, or the file is damaged or cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise SettingsError(f"a key's name must be up to 64 letters, digits, '.', '_' and '-', got {name!r:.80}")
    key = _PREFIX + secrets.token_urlsafe(32)
    with _changing(file):
        keys = read_keys(file) if Path(file).exists() else []
        if any(known.name == name for known in keys):
            raise SettingsError(f"{file} has a key named {name!r} already; remove that one, or choose another name")
        _write(Path(file), [*keys, Key(name, _hash(key), operator, datetime.now(UTC).isoformat(timespec="seconds"))])
    return key


def remove_key(file: str | Path, name: str) -> None:
    """Remove a key; running servers refuse it from then on.

    Raises:
        SettingsError: there is no key of this name, or the file is damaged or cannot be written.
    """
    read_keys(file)  # so that a wrong path makes no folder
    with _changing(file):
        keys = read_keys(file)
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            raise SettingsError(f"{file} has no key {name!r}; its keys are {', '.join(key.name for key in keys)}")
        _write(Path(file), left)


def read_keys(file: str | Path) -> list[Key]:
    """Read a file.

    Raises:
        SettingsError: there is no such file, or it is damaged.
    """
    with told(file, SettingsError, "read", f"make it: {_command(file)}"):
        text = Path(file).read_bytes()
    try:
        return [_key(each) for each in json.loads(text)["keys"]]
    except (ValueError, TypeError, KeyError) as error:
        raise SettingsError(
            f"{file} is not a file of keys ({error}); restore it, or make one: {_command(file)}"
        ) from error


def _key(values: Mapping[str, object]) -> Key:
    key = Key(**values)  # type: ignore[arg-type]
    if not isinstance(key.name, str) or not isinstance(key.sha256, str) or not isinstance(key.operator, bool):
        raise ValueError("an entry has values of wrong types")
    if not re.fullmatch(r"[0-9a-f]{64}", key.sha256):
        raise ValueError(f"the hash of {key.name!r} is not 64 hex digits")
    return key


@contextmanager
def _changing(file: str | Path) -> Iterator[None]:
    """Keep other processes from changing a file at the same time, whose change would be lost."""
    with told(file, SettingsError, "written"):
        Path(file).resolve().parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{file}.lock", timeout=10)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _write(file: Path, keys: list[Key]) -> None:
    """Replace a file atomically; only its owner may read it."""
    with told(file, SettingsError, "written"):
        file = file.resolve()
        handle, draft = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")  # with mode 0600
        try:
            with open(handle, "w", encoding="utf-8") as stream:
                json.dump({"keys": [asdict(key) for key in keys]}, stream, indent=2)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(draft, file)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
        sync(file.parent)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


def _command(file: str | Path) -> str:
    return f"memograft keys add {file} NAME"
