"""Cached folders are written atomically, made again when damaged, and made by one of several processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gguf_files import write
from memograft import Engine
from memograft.model import converted
from memograft.model.converted import digest, kept, root
from test_engine import ask

TESTS = Path(__file__).parent


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEMOGRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Maker:
    """Fills a folder with two files and counts its calls."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, folder: Path) -> None:
        assert not list(folder.iterdir())
        self.times += 1
        (folder / "a.txt").write_text("first")
        (folder / "b.txt").write_text("second")


def use(make: Callable[[Path], None]) -> dict[str, str]:
    with kept("thing", make) as folder:
        return {f.name: f.read_text() for f in folder.iterdir() if f.name != "memograft.json"}


WHOLE = {"a.txt": "first", "b.txt": "second"}


def test_it_is_made_once(cache: Path) -> None:
    make = Maker()
    assert use(make) == use(make) == WHOLE
    assert make.times == 1
    assert {entry.name for entry in cache.iterdir()} <= {"thing", "thing.lock"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "a.txt").write_text("fir"),
        lambda f: (f / "a.txt").write_text("worst"),
        lambda f: (f / "a.txt").unlink(),
        lambda f: (f / "c.txt").write_text("not ours"),
        lambda f: (f / "c").mkdir(),
        lambda f: (f / "memograft.json").unlink(),
        lambda f: (f / "memograft.json").write_text('{"files"'),
        lambda f: (f / "memograft.json").write_text("[]"),
        lambda f: (f / "memograft.json").write_bytes(b"\xff\xfe"),
        lambda f: shutil.rmtree(f),
        lambda f: (shutil.rmtree(f), f.write_text("a file in its place")),
    ],
)
def test_what_is_damaged_is_made_anew(damage: Any, cache: Path) -> None:
    make = Maker()
    use(make)
    damage(cache / "thing")
    assert use(make) == use(make) == WHOLE
    assert make.times == 2


def test_what_a_dead_process_left_is_no_obstacle(cache: Path) -> None:
    (cache / "thing.draft").mkdir(parents=True)
    (cache / "thing.draft" / "half").write_text("half")
    assert use(Maker()) == WHOLE
    assert not (cache / "thing.draft").exists()


def test_what_fails_leaves_nothing(cache: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "a.txt").write_text("first")
        raise ValueError("halfway")

    with pytest.raises(ValueError, match="halfway"):
        use(fail)
    assert not [entry for entry in cache.iterdir() if entry.is_dir()]


def test_where_nothing_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MEMOGRAFT_CACHE", str(tmp_path / "file" / "cache"))
    make = Maker()
    assert use(make) == use(make) == WHOLE
    assert make.times == 2
    assert (
        caplog.text.count("so this work is done again at each load; set MEMOGRAFT_CACHE to a folder that can be") == 2
    )


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("MEMOGRAFT_CACHE", "~no-such-user-anywhere/cache")
    assert use(Maker()) == WHOLE
    assert "the cache cannot be used (there is no home to look for ~no-such-user-anywhere/cache in), so" in caplog.text


def test_an_error_of_the_user_of_a_folder_is_not_the_caches(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(OSError, match="theirs"), kept("thing", Maker()):
        raise OSError("theirs")
    assert not caplog.messages


def test_digests_see_every_byte_of_what_is_not_huge(tmp_path: Path) -> None:
    file = tmp_path / "x"
    seen = set()
    for content in (b"", b"\0", b"\0\0", b"abc", b"abd", b"a" * converted._MIB, b"a" * converted._MIB + b"b"):
        file.write_bytes(content)
        seen.add(digest(file))
    assert len(seen) == 7


def test_digests_of_huge_files_are_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converted, "_MIB", 2)
    file = tmp_path / "x"
    content = bytearray(b"0" * 10_001)
    file.write_bytes(content)
    before = digest(file)
    for change in (slice(0, 1), slice(10_000, 10_001), slice(5_000, 5_050)):
        changed = content.copy()
        changed[change] = b"1" * (change.stop - change.start)
        file.write_bytes(changed)
        assert digest(file) != before
    file.write_bytes(content[:-1])
    assert digest(file) != before


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, "~/.cache/memograft"),
        ("linux", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/memograft"),
        ("darwin", {"XDG_CACHE_HOME": "/xdg"}, "~/Library/Caches/memograft"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/memograft"),
        ("win32", {}, "~/AppData/Local/memograft"),
        ("linux", {"MEMOGRAFT_CACHE": "~/mine", "XDG_CACHE_HOME": "/xdg"}, "~/mine"),
    ],
)
def test_where_it_is(platform: str, variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MEMOGRAFT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert root() == Path(expected).expanduser()


def test_a_kept_model_that_is_damaged(tmp_path: Path, cache: Path, models: Any, tokenizer: Any) -> None:
    file = write(tmp_path / "model.gguf", models("llama"), tokenizer)
    said = []
    for _ in range(2):
        with Engine.from_pretrained(file, dtype=torch.float32) as engine:
            said.append(engine.answer(ask()).token_ids)
        (weights,) = cache.glob("*/model.safetensors")
        weights.write_bytes(weights.read_bytes()[:-100])
    assert said[0] == said[1]


def test_two_processes_that_want_one_model(tmp_path: Path, models: Any, tokenizer: Any) -> None:
    file = write(tmp_path / "model.gguf", models("llama"), tokenizer)
    script = (
        "import logging, sys; logging.basicConfig(level=logging.INFO)\n"
        "from memograft import Engine\n"
        "print(Engine.from_pretrained(sys.argv[1], dtype='float32').fingerprint)"
    )
    paths = os.pathsep.join([str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, str(file)]
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0] != ""
    assert "".join(errors for _, errors in said).count(f"converting {file} once") == 1
