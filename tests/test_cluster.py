"""Workers and replicas on a local Ray with two cores: nothing is lost and nothing done twice, also if one is killed."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file

from clusters import Fatal, Named
from macs import saved_mac
from memograft import Document, Engine, FastMem, Gist, MacBank
from memograft.cluster import Pool, answer_cells, memorize_all, replicated
from memograft.errors import MemograftError, SettingsError
from memograft.evaluation.items import world
from memograft.evaluation.methods import METHODS
from memograft.evaluation.runner import Records, run
from memograft.memory.folder import inspected
from memograft.server import ServerSettings, add_key

ray: Any = pytest.importorskip("ray", reason="needs Ray: pip install 'memograft[ray]'")

pytestmark = [
    # Ray Data sets options that it has itself deprecated: https://github.com/ray-project/ray/issues/65302
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.timeout(600),
]
TWO = Pool(2)
PAGES = [
    Document(f"The harbour of town {n} was built by Ada Brook, and {n} boats lie there.", f"{n}") for n in range(40)
]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # workers import `clusters`
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
        yield
        ray.shutdown()


def inodes(folder: Path) -> dict[str, int]:
    """Which memories there are: one that is written again has another inode."""
    return {path.name: (path / "memograft.json").stat().st_ino for path in folder.iterdir() if path.is_dir()}


def test_a_killed_worker_loses_nothing_and_a_second_run_repeats_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "killed"
    pages = [*PAGES[:20], Document(PAGES[20].text, "20", {"kill": str(mark)}), *PAGES[21:30]]
    done = memorize_all(pages, tmp_path / "bank", memory=Fatal(), pool=TWO, batch=8, progress=False)
    assert mark.exists()  # a worker died
    assert done.count("failed") == 0
    there = [outcome.document for outcome in done.outcomes if outcome.status == "there"]
    assert there == ["16", "17", "18", "19"]  # what it had put into the bank before; its batch was repeated
    first = inodes(tmp_path / "bank")
    assert set(first) == {outcome.memory for outcome in done.outcomes}
    assert len(first) == 30  # each once, and nothing beside them
    assert not [id for id in first if inspected(tmp_path / "bank" / id).damaged]

    again = memorize_all(PAGES, tmp_path / "bank", pool=TWO, batch=8, progress=False)
    assert (again.count("there"), again.count("made")) == (30, 10)
    second = inodes(tmp_path / "bank")
    assert second.items() >= first.items()

    alone = memorize_all(PAGES, tmp_path / "alone", batch=8, progress=False)
    assert [outcome.memory for outcome in alone.outcomes] == [outcome.memory for outcome in again.outcomes]
    for id in second:  # equal but for rounding, because the batches of a killed worker are others
        found, wanted = (load_file(tmp_path / bank / id / "adapter_model.safetensors") for bank in ("bank", "alone"))
        assert found.keys() == wanted.keys()
        for name in found:
            assert (found[name] - wanted[name]).norm() <= 0.01 * wanted[name].norm(), name


def test_a_worker_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(MemograftError, match=r"a worker failed: MemoryFormatError: .*no gist"):
        memorize_all(PAGES[:2], tmp_path / "bank", memory=Gist("no gist"), pool=TWO, batch=1, progress=False)


def test_modulations_of_two_workers_are_those_of_one(tmp_path: Path, tiny: Engine) -> None:
    mac = saved_mac(tiny, tmp_path / "mac")
    shared, alone = MacBank(tmp_path / "shared", mac), MacBank(tmp_path / "alone", mac)
    done = memorize_all(PAGES, shared, pool=TWO, batch=8, progress=False)
    assert done.count("made") == 40
    alone.add(tiny, PAGES, progress=False)
    assert sorted(shared.ids) == sorted(alone.ids)
    assert len(shared.entries) == len(alone.entries) == 40  # each once
    order = [shared.ids.index(id) for id in alone.ids]
    torch.testing.assert_close(shared.modulations()[order], alone.modulations(), atol=2e-3, rtol=2e-3)  # float16
    assert memorize_all(PAGES, shared, pool=TWO, progress=False).count("there") == 40
    with pytest.raises(SettingsError, match="a MacBank has modulations of documents, so `memory` must be None"):
        memorize_all(PAGES, shared, memory=FastMem())


def test_an_evaluation_by_two_workers_equals_that_of_one_process(tmp_path: Path, tiny: Engine) -> None:
    items, methods = world("test", 2), {name: METHODS[name] for name in ("plain", "memorized")}
    answer_cells(TWO, "tiny", methods, items, tmp_path / "shared", progress=False)
    files = {path.name: path.read_bytes() for path in (tmp_path / "shared").iterdir()}
    found = run(tiny, methods, items, tmp_path / "shared", progress=False)
    assert {path.name: path.read_bytes() for path in (tmp_path / "shared").iterdir()} == files  # nothing was asked
    wanted = run(tiny, methods, items, tmp_path / "alone", progress=False)
    assert _texts(found) == _texts(wanted)


def _texts(records: Records) -> list[tuple[object, ...]]:
    rows = [(method, name, row) for method, by_set in records.items() for name, rows in by_set.items() for row in rows]
    return [(method, name, row["id"], row["text"], row["right"], row["new_tokens"]) for method, name, row in rows]


def test_a_memory_made_through_one_replica_is_found_by_the_other(tmp_path: Path) -> None:
    from ray import serve

    file, port = tmp_path / "keys.json", free_port()
    alice, bob = (
        httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=120, headers={"Authorization": f"Bearer {add_key(file, name)}"}
        )
        for name in ("alice", "bob")
    )
    serve.start(http_options={"port": port})
    try:
        serve.run(replicated(Named(str(tmp_path / "bank"), settings=ServerSettings(model="tiny"), keys=str(file)), TWO))
        page = {"text": "The capital of Australia is Lisbon.", "id": "page"}
        made = alice.post("/v1/memories", json={"documents": [page]})
        assert made.status_code == 201, made.text
        place = f"/v1/memories/{made.json()['id']}"
        asked = {"model": "tiny", "messages": [{"role": "user", "content": "What is the capital of Australia?"}]}
        answers = both(lambda: alice.post("/v1/chat/completions", json=asked | {"memory": made.json()["id"]}))
        said = [answer.json()["choices"][0]["message"]["content"] for answer in answers]
        assert said == ["The capital of Australia is Lisbon."] * 2
        again = both(lambda: alice.post("/v1/memories", json={"documents": [page]}))
        assert [(each.status_code, each.json()["id"]) for each in again] == [(200, made.json()["id"])] * 2
        assert [each.status_code for each in both(lambda: bob.get(place))] == [404, 404]
        assert [each.status_code for each in both(lambda: httpx.get(f"http://127.0.0.1:{port}/v1/models"))] == [
            401,
            401,
        ]
        assert alice.post("/v1/stores", json={"name": "mine"}).json()["error"]["code"] == "stores_full"
        assert alice.delete(place).status_code == 200
        assert [each.status_code for each in both(lambda: alice.get(place))] == [404, 404]
    finally:
        serve.shutdown()
        alice.close()
        bob.close()


def both(ask: Callable[[], httpx.Response]) -> list[httpx.Response]:
    """The responses of both replicas: asks until each has answered."""
    found: dict[str, httpx.Response] = {}
    while len(found) < 2:
        response = ask()
        found.setdefault(response.headers["x-process"], response)
    return list(found.values())


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
