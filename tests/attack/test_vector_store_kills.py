"""A writer is killed at random times: acknowledged writes are there, and the interrupted one is complete or absent.

The child runs a sequence of writes that is determined by their numbers, so the parent knows what the store must
contain. It prints "done N" after each. The same folder is used for all kills, so recovery is also interrupted.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from memograft.documents import Document
from memograft.passages.vector_store import IndexSettings, VectorStore

SOURCE = Path(__file__).parents[2] / "src"
ROUNDS = 5


class LetterEmbedder:
    """Counts letters; cheap, so that most time is spent in the store."""

    dimension = 26
    fingerprint = "letters"

    def config(self):
        return {"type": "letters"}

    def embed_documents(self, texts):
        return np.array([[1 + text.count(chr(97 + i)) for i in range(26)] for text in texts], np.float32)

    def embed_query(self, text):
        return self.embed_documents([text])[0]


def open_store(folder, kind: str) -> VectorStore:
    return VectorStore(LetterEmbedder(), folder, index=IndexSettings(kind, ivf_train_at=256 if kind == "ivfpq" else 60))


def operation(number: int) -> tuple[str, list]:
    """The write with this number: ("add", documents), ("delete", ids), ("persist", []) or ("compact", [])."""
    rng = random.Random(number)
    name = rng.choices(["add", "delete", "persist", "compact"], [6, 2, 2, 1])[0]
    if name == "add":
        ids = [f"id{rng.randrange(120)}" for _ in range(rng.randrange(1, 25))]
        return name, [Document("".join(rng.choices("abcdefghij", k=30)), id, {"number": number}) for id in ids]
    if name == "delete":
        return name, [f"id{rng.randrange(120)}" for _ in range(10)]
    return name, []


def apply(model: dict[str, Document], number: int) -> dict[str, Document]:
    name, items = operation(number)
    if name == "add":
        return {**model, **{document.id: document for document in items}}
    return {id: document for id, document in model.items() if name != "delete" or id not in items}


def child(folder: str, kind: str, number: int) -> None:
    print("started", flush=True)
    store = open_store(folder, kind)
    while True:
        name, items = operation(number)
        if name in ("add", "delete"):
            getattr(store, name)(items)
        else:
            getattr(store, name)()
        print("done", number, flush=True)
        number += 1


def run_and_kill(folder: Path, kind: str, number: int, delay: float) -> int:
    """Run the child from this write on, kill it after `delay` seconds of work, return the next unacknowledged write."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(folder), kind, str(number)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "started\n", process.stderr.read()
        time.sleep(delay)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    # Not by `communicate`, which ignores data that was read together with the first line.
    out, err = process.stdout.read(), process.stderr.read()
    process.stdout.close()
    process.stderr.close()
    assert process.returncode == -signal.SIGKILL, err
    done = [int(line.split()[1]) for line in out.split("\n")[:-1]]
    assert done == list(range(number, number + len(done)))
    return number + len(done)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf", "ivfpq"])
def test_every_acknowledged_write_survives_a_kill(
    tmp_path: Path, kind: str, rng: random.Random, effort: int, tally: Counter[str]
) -> None:
    folder = tmp_path / "store"
    model: dict[str, Document] = {}
    if kind == "ivfpq":  # so that it is trained, and stays so
        model = {f"{n}": Document("".join(rng.choices("abcdefghij", k=30)), f"{n}") for n in range(300)}
        with open_store(folder, kind) as store:
            store.add(model.values())
    number = first = rng.randrange(10**6)
    round_ = 0
    # On a busy machine few writes are done, so each round gets more time.
    while round_ < ROUNDS * effort or number - first <= 10:
        # The first rounds hit import, creation of files and opening; the others hit writes.
        reached = run_and_kill(folder, kind, number, rng.uniform(0, 0.3) + 0.12 * round_ / effort)
        for write in range(number, reached):
            model = apply(model, write)
        number = reached
        tally.update(kills=1)
        with open_store(folder, kind) as store:
            kept = {document.id: document for document in store}
            assert kept in (model, apply(model, number)), f"round {round_}, write {number} {operation(number)[0]}"
            model = kept
            hits = store.search("abc", k=1000)
            assert {hit.document.id: hit.document for hit in hits} == model
            for document in list(model.values())[:5]:
                assert store.search(document.text, k=1)[0].score == pytest.approx(1, abs=1e-5)
        if round_ % 2:
            assert [file.name for file in folder.glob("*.new")] == []
            assert len(list(folder.glob("vectors-*.faiss"))) <= 2
        round_ += 1


if __name__ == "__main__":
    child(sys.argv[1], sys.argv[2], int(sys.argv[3]))
