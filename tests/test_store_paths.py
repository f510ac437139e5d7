"""Paths that the system refuses: the stores raise their own errors with the path and the system's message."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from forks import in_a_fork
from memograft import Datastore, Engine, FastMem, VectorStore, shared_datastore
from memograft.errors import MemoryFormatError, SettingsError, StoreError
from test_datastore import new, synthetic

CALLS: dict[str, Callable[[Path], object]] = {
    "new vector store": lambda path: VectorStore(path=path),
    "vector store to read": lambda path: VectorStore(path=path, read_only=True),
    "vector store to open": VectorStore.open,
    "datastore": Datastore.open,
    "datastore to read": lambda path: Datastore.open(path, read_only=True),
    "shared datastore": shared_datastore,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_path_that_is_too_long(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match=r"x{300}.* cannot be (read|written) \(.*File name too long.*\); ") as caught:
        CALLS[name](tmp_path / ("x" * 300))
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("name", CALLS)
def test_a_folder_that_is_closed_to_us(tmp_path: Path, name: str) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)

    def child() -> None:
        if os.geteuid() == 0:  # root can read everything
            os.setuid(65534)
        with pytest.raises(StoreError, match=r"closed/store.* cannot be (read|written) .*Permission denied") as caught:
            CALLS[name](closed / "store")
        assert isinstance(caught.value.__cause__, PermissionError)

    assert in_a_fork(child) == 0


@pytest.mark.parametrize("name", ["new vector store", "vector store to read", "datastore", "shared datastore"])
def test_a_folder_in_the_place_of_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "header.json").mkdir()
    (tmp_path / "passages.sqlite3").mkdir()
    with pytest.raises(StoreError, match=r"(header\.json'|passages\.sqlite3) (cannot be|could not be)"):
        CALLS[name](tmp_path)


def test_a_path_with_nul() -> None:
    with pytest.raises(StoreError, match=r"cannot be written \(embedded null byte\); pass a folder that can"):
        VectorStore(path="a\0b")


@pytest.mark.parametrize("target", ["file", "x" * 300])
def test_a_copy_that_cannot_be_written(tmp_path: Path, target: str) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    with new(tmp_path / "store", "flat") as store:
        store.extend(*synthetic(4, sources=1, prefix="a"))
        with pytest.raises(StoreError, match=rf"{target}.* cannot be read|could not be copied .*{target}") as caught:
            store.save(tmp_path / target)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(("path", "why"), [("x" * 300, "File name too long"), ("a\0b", "a path cannot contain NUL")])
def test_memories_and_settings_say_it_too(engine: Engine, tmp_path: Path, path: str, why: str) -> None:
    handle = engine.memorize(["The capital of France is Lyon."])
    for error, what, call in (
        (MemoryFormatError, "written", handle.save),
        (MemoryFormatError, "read", engine.load_memory),
        (SettingsError, "written", FastMem().save),
        (SettingsError, "read", FastMem.load),
    ):
        with pytest.raises(error, match=rf"cannot be {what} \({why}\); pass a path that can") as caught:
            call(tmp_path / path)
        assert isinstance(caught.value.__cause__, OSError)
