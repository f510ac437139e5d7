"""What workers and replicas refuse before anything starts, and several shelves in one folder. No Ray runs here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from memograft import Document, Engine, FastMem
from memograft.cli.app import app
from memograft.cluster import Pool, ServerOf, replicated
from memograft.cluster.replicas import app as application
from memograft.errors import SettingsError
from memograft.server.errors import ApiError
from memograft.server.settings import ServerSettings
from memograft.server.shelf import Shelf


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("memorize page.txt", "needs a place, got none; pass --out FOLDER for one memory of all files, or --bank"),
        (
            "memorize page.txt --out m --workers 2",
            "workers share a bank, got 2 of them and no bank; pass --bank FOLDER",
        ),
        ("serve --replicas 2", "replicas share a bank's folder, got none; pass --bank FOLDER"),
        ("serve --replicas 2 --bank b --stores s", "a store has one writer, so replicas cannot keep clients' stores"),
    ],
)
def test_options_that_do_not_fit(command: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.txt").write_text("The harbour of Lindow was built by Ada Brook.")
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 1
    assert said in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["page.txt"]


def test_a_bank_is_filled_and_filled_up(tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / "pages" / f"part{n}").mkdir(parents=True)
        (tmp_path / "pages" / f"part{n}" / "page.txt").write_text(f"The harbour of town {n} was built by Ada Brook.")
    (tmp_path / "pages" / "long.txt").write_text("a word " * 5000)
    for made, there in ((3, 0), (0, 3)):
        result = CliRunner().invoke(app, ["memorize", str(tmp_path / "pages"), "--bank", str(tmp_path / "bank")])
        assert result.exit_code == 0, result.output
        assert f"memorized {made} documents, {there} were there, 1 failed" in result.stdout.replace("\n", " ")
        assert "not memorized: long.txt: the prompt with its 1 documents has more than" in result.stderr
    assert len([path for path in (tmp_path / "bank").iterdir() if path.is_dir()]) == 3


def test_an_application_without_a_bank_or_with_other_options_is_refused() -> None:
    with pytest.raises(SettingsError, match="replicas share a bank's folder, got none"):
        replicated(ServerOf(""), Pool(2))
    with pytest.raises(SettingsError, match=r"the options of a server are .*, got \['banks'\]; check the names"):
        application({"banks": "memories"})


def test_shelves_of_two_processes_in_one_folder(tiny: Engine, tmp_path: Path) -> None:
    one, two = (
        Shelf(tiny.load_memory, tiny.fingerprint, ServerSettings(max_memories=2), b"secret", tmp_path) for _ in range(2)
    )
    pages = [Document(f"The harbour of town {n} was built by Ada Brook.", str(n)) for n in range(3)]
    ids = [one.id_of([page], FastMem()) for page in pages]
    handles = [tiny.memorize([page]) for page in pages]
    one.put(ids[0], handles[0], pinned=True)
    assert two.get(ids[0]).pinned  # made and pinned by the other one
    assert two.handle(ids[0]).documents == (pages[0],)
    two.pin(ids[0], pinned=False)
    assert [(each.id, each.pinned) for each in one.all()] == [(ids[0], False)]
    two.put(ids[1], handles[1])
    one.put(ids[2], handles[2])  # the limit of two holds for both together
    assert {each.id for each in one.all()} == {each.id for each in two.all()} == {ids[1], ids[2]}
    one.remove(ids[2])
    for shelf in (one, two):
        with pytest.raises(ApiError, match="there is no memory"):
            shelf.handle(ids[2])  # also where it was held in process memory


@pytest.mark.parametrize("module", ["memograft.server", "memograft.cluster.replicas"])
def test_without_fastapi_the_extra_is_named(module: str) -> None:
    code = f"import sys; sys.modules['fastapi'] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    said = (
        "MissingExtraError: memograft.server needs fastapi, which is not installed; run pip install 'memograft[serve]'"
    )
    assert said in done.stderr
