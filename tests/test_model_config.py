"""memograft_config.json: writing and reading, a model's values for "auto", and errors."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from memograft import Engine, FastMem, Sampling
from memograft.errors import SettingsError
from memograft.evaluation.methods import from_settings
from memograft.memory.fastmem.settings import AUTOMATIC
from memograft.model import config as model_config
from memograft.model.loading import BUNDLED

TINY = Path(str(files("memograft") / BUNDLED["tiny"]))


def write(path: Path, fastmem: Any) -> Path:
    path.write_text(json.dumps({"format": 1, "fastmem": fastmem}))
    return path


def test_what_is_written_is_read_again_and_says_where_it_comes_from(tmp_path: Path) -> None:
    path = model_config.write(tmp_path / "mine.json", {"steps": 3}, {"questions": "my own"})
    assert (path, model_config.read(path)) == (tmp_path / "mine.json", {"steps": 3})
    assert json.loads(path.read_text()) == {"format": 1, "fastmem": {"steps": 3}, "about": {"questions": "my own"}}
    assert [p.name for p in tmp_path.iterdir()] == ["mine.json"], "no draft is left"


def test_a_folder_stands_for_the_file_in_it(tmp_path: Path) -> None:
    assert model_config.write(tmp_path, {"rank": 4}) == tmp_path / "memograft_config.json"
    assert model_config.read(tmp_path) == {"rank": 4}


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = model_config.write(tmp_path / "mine.json", {"steps": 3})
    with pytest.raises(TypeError, match="not JSON serializable"):
        model_config.write(path, {"steps": object()})
    assert model_config.read(path) == {"steps": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["mine.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"there is no file .*config\.json; write one with `memograft tune` or `FastMem.save`"),
        ("{", r"config\.json must be JSON, but: Expecting .*; write it again, or remove it"),
        ("[]", r'config\.json must hold \{"format": 1, "fastmem": \{\.\.\.\}\}, got \[\]; write it again with this'),
        ('{"format": 2, "fastmem": {}}', r'got \{"format": 2, "fastmem": \{\}\}; write it again with this version'),
        ('{"format": 1, "fastmem": []}', r'got \{"format": 1, "fastmem": \[\]\}; write it again with this version'),
    ],
)
def test_what_is_no_such_file_is_refused(content: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError, match=said):
        model_config.read(path)
    with pytest.raises(SettingsError, match=said):
        FastMem.load(path)


def test_what_a_model_brings_is_looked_for_beside_its_weights(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    assert model_config.of_model(tmp_path, BUNDLED) == {}, "a folder without it"
    assert model_config.of_model(tmp_path / "model.gguf", BUNDLED) == {}
    model_config.write(tmp_path, {"steps": 3})
    assert model_config.of_model(tmp_path, BUNDLED) == {"steps": 3}
    assert model_config.of_model(str(tmp_path / "model.gguf"), BUNDLED) == {"steps": 3}
    own = {"steps": 10, "learning_rate": 4e-3, "target_kl": None, "max_kl": 10.0, "shortlist": None}
    assert model_config.of_model("tiny", BUNDLED) == own
    assert model_config.of_model("nobody/nothing", BUNDLED, local_files_only=True) == {}


def test_settings_survive_a_file_and_only_what_was_chosen_is_written(tmp_path: Path) -> None:
    settings = FastMem(learning_rate=2e-3, target_kl=None, gate="support", seed=3)
    path = settings.save(tmp_path / "mine.json", {"why": "a test"})
    assert model_config.read(path) == {
        "learning_rate": 2e-3, "target_kl": None, "gate": "support", "seed": 3,
    }  # fmt: skip
    assert FastMem.load(path) == settings
    assert FastMem.load(FastMem.paper().save(tmp_path)) == FastMem.load(tmp_path) == FastMem.paper()


def test_a_file_of_other_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"mine.json has an entry that is no setting of FastMem \(.*'stepz'\)"):
        FastMem.load(write(tmp_path / "mine.json", {"stepz": 3}))
    with pytest.raises(SettingsError, match='`steps` must be a whole number of at least 1 or "auto", got 0'):
        FastMem.load(write(tmp_path / "mine.json", {"steps": 0}))


def test_auto_is_what_the_model_brings_and_else_what_is_usual() -> None:
    assert asdict(FastMem().resolved()) == asdict(FastMem()) | AUTOMATIC
    own = {"steps": 7, "learning_rate": 2e-3, "target_kl": None, "relevance": "auto"}
    assert FastMem().resolved(own) == FastMem(**{**AUTOMATIC, "steps": 7, "learning_rate": 2e-3, "target_kl": None})
    given = FastMem(steps=2, learning_rate=1e-4, target_kl=2.0, relevance=None, shortlist=7, max_kl=3.0)
    assert given.resolved(own) == given, "what a request says counts"


def test_a_model_that_brings_nonsense_is_refused() -> None:
    said = "may set steps, learning_rate, target_kl, relevance, shortlist, max_kl, got a, b, rank; remove the others"
    with pytest.raises(SettingsError, match=said):
        FastMem().resolved({"b": 1, "rank": 2, "a": 1})
    with pytest.raises(SettingsError, match='`learning_rate` must be a positive number or "auto", got -1'):
        FastMem().resolved({"learning_rate": -1})
    with pytest.raises(SettingsError, match=r'`steps` must be a whole number of at least 1 or "auto", got 2\.5'):
        FastMem().resolved({"steps": 2.5})


def test_settings_of_an_evaluation_may_be_a_file_or_its_folder(tmp_path: Path) -> None:
    path = FastMem(steps=3, target_kl=None).save(tmp_path)
    for text in (str(path), str(tmp_path)):
        method = from_settings(text)
        assert method.memory is not None
        assert method.memory() == FastMem(steps=3, target_kl=None)
    with pytest.raises(SettingsError, match=r"there is no file nowhere\.json; write one with `memograft tune`"):
        from_settings("nowhere.json")


def test_an_engine_takes_what_the_models_folder_brings(tmp_path: Path) -> None:
    folder = shutil.copytree(TINY, tmp_path / "model")
    model_config.write(folder, {"steps": 2, "learning_rate": 7e-3, "relevance": None, "shortlist": None})
    with Engine.from_pretrained(folder) as engine:
        expected = replace(FastMem().resolved(), steps=2, learning_rate=7e-3, relevance=None, shortlist=None)
        assert engine.defaults == expected
        for memory, steps in ((FastMem(), 2), (FastMem(steps=1), 1)):
            answer = engine.answer("Who keeps it?", ["Ida keeps it."], memory=memory, sampling=Sampling(1))
            assert answer.memory is not None
            assert answer.memory.steps == steps
            told = answer.memory.settings
            assert (told["learning_rate"], told["relevance"], told["steps"]) == (7e-3, None, steps)
    (folder / "memograft_config.json").unlink()
    with Engine.from_pretrained(folder) as engine:
        assert engine.defaults == FastMem().resolved()
    write(folder / "memograft_config.json", {"rate": 1})
    with pytest.raises(SettingsError, match=r"may set steps, learning_rate, .*, got rate; remove"):
        Engine.from_pretrained(folder)
