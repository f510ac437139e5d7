"""A disk of two megabytes is full at random times: nothing is lost, the error states it, and calls work afterwards.

The disk is a tmpfs in a namespace of its own, if the kernel allows that. A limit on file sizes (RLIMIT_FSIZE, in other
tests) is different: on a full disk no files can be created either, but written ranges can be overwritten.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from test_vector_store_interrupts import contents
from test_vector_store_kills import open_store

from families import build
from memograft import Bank, Datastore, Engine
from memograft.documents import Document
from memograft.errors import MemoryFormatError, StoreError
from test_datastore import contents as inside
from test_datastore import new, synthetic
from test_engine import FACTS
from test_memory_handle import LORA
from tokenizers_ import make

TESTS = Path(__file__).parents[1]
MOUNT = 'mount -t tmpfs -o size=2m none "$0" && exec "$@"'
ROUNDS = 8


@contextmanager
def full(disk: Path, room: int) -> Iterator[None]:
    """Fill the disk except for `room` bytes."""
    state = os.statvfs(disk)
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as file, suppress(OSError):
        file.write(bytes(max(0, state.f_bavail * state.f_frsize - room)))
    try:
        yield
    finally:
        ballast.unlink()


def fill_stores(disk: Path, rng: random.Random, rounds: int) -> int:
    """Stores with each kind of index."""
    met = 0
    for kind in ("flat", "hnsw", "ivf", "ivfpq"):
        store, model = open_store(disk / kind, kind), dict[str, Document]()
        for number in range(rounds):
            with full(disk, rng.randrange(300_000)):
                for step in range(200):
                    made = [Document("abc " + "x" * rng.randrange(2000), f"{number} {step} {n}") for n in range(20)]
                    gone = rng.sample(list(model), min(len(model), 3))
                    before = dict(model)
                    name = rng.choice(["add", "add", "add", "delete", "persist", "compact"])
                    if name == "add":
                        model |= {document.id: document for document in made}
                    elif name == "delete":
                        model = {id: document for id, document in model.items() if id not in gone}
                    arguments = {"add": [made], "delete": [gone]}.get(name, [])
                    try:
                        getattr(store, name)(*arguments)
                    except StoreError as error:
                        refusal = str(error)
                        break
                else:
                    raise AssertionError("the disk was never full")
                assert "free some" in refusal, refusal
                met += 1
                kept = contents(store)
                assert kept in (before, model), name  # while the disk is full
                if rng.random() < 0.3:  # close it while the disk is full
                    with suppress(StoreError):
                        store.close()
                    store = open_store(disk / kind, kind)
                    assert contents(store) == kept
            getattr(store, name)(*arguments)
            assert contents(store) == model, name
            if rng.random() < 0.5:
                store.close()
                store = open_store(disk / kind, kind)
                assert contents(store) == model
            store.delete(list(model)[20:])
            model = dict(list(model.items())[:20])
            store.compact()
        store.close()
        shutil.rmtree(disk / kind)
    return met


def entries(store: Datastore) -> dict[str, list[tuple[int, int, bytes]]]:
    """Its contents; search results must be among them."""
    ids = store.ids()
    found = store.nearest(np.zeros((1, 16), np.float32), 5)
    assert {store.source(int(number)).id for number in found.sources.flat} <= set(ids)
    kept = inside(store)  # must follow a call
    assert set(kept) == set(ids)
    assert len(store) == sum(map(len, kept.values()))
    return kept


def fill_datastores(disk: Path, rng: random.Random, rounds: int) -> int:
    """Datastores without and with an index file."""
    met = 0
    for kind in ("flat", "sq8"):
        store = new(disk / kind, kind)
        store.extend(*synthetic(1100 if kind == "sq8" else 24, sources=4, prefix="first"))
        before = entries(store)
        for number in range(rounds):
            with full(disk, rng.randrange(120_000)):
                for step in range(400):
                    name = rng.choice(["extend", "extend", "extend", "delete", "compact"])
                    added, learned = f"{number}-{step}-", synthetic(60, sources=3, prefix=f"{number}-{step}-")
                    gone = rng.choice([id for id in before if not id.startswith("first")] or ["none"])
                    try:
                        if name == "extend":
                            store.extend(*learned)
                        elif name == "delete":
                            store.delete([gone])
                        else:
                            store.compact(progress=False)
                    except StoreError as error:
                        refusal = str(error)
                        break
                    before = entries(store)
                else:
                    raise AssertionError("the disk was never full")
                assert "free some" in refusal, refusal
                met += 1
                kept = entries(store)  # while the disk is full, the change is complete or absent
                less = {id: of_one for id, of_one in before.items() if id != gone}
                more = {id: of_one for id, of_one in kept.items() if id.startswith(added)}
                assert kept in (before, less if name == "delete" else before | more), name
                assert sum(map(len, more.values())) in ((0, 60) if name == "extend" else (0,)), name
                if rng.random() < 0.3:
                    store.close()
                    store = Datastore.open(disk / kind)
                    assert entries(store) == kept
            if name == "extend" and not more:
                store.extend(*learned)
            elif name == "delete":
                store.delete([gone])
            store.compact(progress=False)
            after = {"delete": set(less), "extend": {*before, *(source.id for source in learned[1])}}
            assert set(entries(store)) == after.get(name, set(before))
            assert store.verify() == []
            store.delete([id for id in store.ids() if not id.startswith("first")])
            store.compact(progress=False)
            before = entries(store)
        store.close()
        shutil.rmtree(disk / kind)
    return met


def fill_memories(disk: Path, rng: random.Random, rounds: int) -> int:
    """A memory that is overwritten, and a bank that gets another one."""
    met = 0
    with Engine(build("llama"), make("bpe")) as engine:
        old, new = (engine.memorize([fact], LORA) for fact in FACTS[:2])
        for _ in range(rounds):
            bank = Bank(disk / "bank")
            old.save(disk / "memory")
            bank.put(old)
            size = bank.entries()[0].size
            with full(disk, rng.randrange(size)):
                with pytest.raises(MemoryFormatError, match=r"cannot be written \(.*\); pass a path that can"):
                    new.save(disk / "memory")
                met += 1
                assert engine.load_memory(disk / "memory").id == old.id
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always")
                    bank.put(new)
                assert "could not be kept in" in str(said[0].message)
                assert [entry.id for entry in Bank(disk / "bank").entries()] == [old.id]
            new.save(disk / "memory")
            assert engine.load_memory(disk / "memory").id == new.id
            bank.put(new)
            again = Bank(disk / "bank")
            assert {again.get(handle.id, engine._backbone).id for handle in (old, new)} == {old.id, new.id}  # type: ignore[union-attr]
            assert sorted(path.name for path in disk.iterdir()) == ["bank", "memory"]
            again.gc(1)
    return met


@pytest.mark.parametrize("name", ["stores", "datastores", "memories"])
def test_a_disk_that_is_full_at_any_moment(
    tmp_path: Path, name: str, rng: random.Random, effort: int, tally: Counter[str]
) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("needs util-linux's unshare, to mount a small disk")
    begin = ["unshare", "-rm", "sh", "-c", MOUNT, str(tmp_path)]
    refused = subprocess.run([*begin, "true"], capture_output=True, text=True, check=False)
    if refused.returncode:
        pytest.skip(f"no small disk can be mounted here: {refused.stderr.strip()}")
    path = os.pathsep.join(map(str, (TESTS.parent / "src", TESTS, TESTS / "attack")))
    # faiss 1.12 and 1.13 warn while they are imported, as pyproject.toml says, and crash if that is an error.
    python = [sys.executable, "-W", "error", "-W", "ignore:builtin type:DeprecationWarning"]
    run = subprocess.run(
        [*begin, *python, __file__, str(tmp_path), name, str(rng.random()), str(ROUNDS * effort)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert list(tmp_path.iterdir()) == [], "it wrote beside the small disk"
    tally.update(full_disks=int(run.stdout))
    assert int(run.stdout) >= ROUNDS * effort


if __name__ == "__main__":
    print(globals()[f"fill_{sys.argv[2]}"](Path(sys.argv[1]), random.Random(sys.argv[3]), int(sys.argv[4])))
