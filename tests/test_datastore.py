"""`Datastore`: learning from examples, and its contents after adding, deleting, saving and opening."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memograft import Datastore, Document, Engine, Rtd, Source
from memograft.errors import (
    ModelMismatchError,
    PromptTooLongError,
    SettingsError,
    StoreCorruptError,
    StoreError,
    StoreLockedError,
    StoreReadOnlyError,
)
from memograft.model.backbone import Backbone
from memograft.rtd.files import Entries, Files, Header
from memograft.rtd.index import Neighbours
from test_engine import ask
from test_rtd_reference import EXAMPLES

EOS = 2


def contents(store: Datastore) -> dict[str, list[tuple[int, int, bytes]]]:
    """Source id -> its entries that are not deleted: (position, value, key)."""
    e, found = store._files.entries, {}
    dead = store._dead if store._dead is not None else np.zeros(len(e.values), bool)
    for n in np.flatnonzero(~dead):
        entry = (int(e.positions[n]), int(e.values[n]), e.keys[n].tobytes())
        found.setdefault(store.source(int(e.sources[n])).id, []).append(entry)
    return {id: sorted(entries) for id, entries in found.items()}


def assert_alike(one: Datastore, other: dict[str, list[tuple[int, int, bytes]]]) -> None:
    """Equal entries, up to the last bits of keys, which depend on the batch."""
    mine = contents(one)
    assert mine.keys() == other.keys()
    for id, entries in mine.items():
        assert [entry[:2] for entry in entries] == [entry[:2] for entry in other[id]]
        keys = [np.frombuffer(b"".join(key for *_, key in side), np.float32) for side in (entries, other[id])]
        np.testing.assert_allclose(*keys, atol=1e-4)


def tokens(store: Datastore, id: str) -> list[int]:
    return [value for _, value, _ in contents(store)[id]]


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_keys_are_the_states_before_the_answers_tokens(make_engine: Any, family: str) -> None:
    engine = make_engine(family)
    with Datastore.build(engine, EXAMPLES, progress=False) as store:
        assert [store.source(n).text for n in range(4)] != []
        for number, id in enumerate(store.ids()):
            source = store.source(number)
            example = next(e for e in EXAMPLES if e[-1] == source.text)
            said = tokens(store, id)
            assert said[-1] == EOS
            assert engine.tokenizer.decode(said[:-1]) == source.text
            documents = [Document(example[0][0])] if len(example) == 3 else []
            messages = example[0] if isinstance(example[0], list) and len(example) == 2 else None
            messages = messages or [{"role": "user", "content": example[-2]}]
            ids = [*engine._prompts.build(messages, documents).ids, *said]
            seen: list[Any] = []
            parts = Backbone.of(engine.model)
            handle = parts.ffn[0].register_forward_pre_hook(lambda _m, args, seen=seen: seen.append(args[0]))
            with torch.no_grad():
                engine.model(torch.tensor([ids]))
            handle.remove()
            x = seen[0].reshape(len(ids), -1)[-len(said) - 1 : -1].numpy()
            mine = store._files.entries.sources == number
            assert np.abs(store._files.entries.keys[mine] - x).max() < 1e-4


def test_every_form_of_an_example(engine: Engine) -> None:
    messages = [{"role": "user", "content": "Who?"}]
    same = [
        ("Who?", "Me."),
        (messages, "Me."),
        ([], "Who?", "Me."),
        {"prompt": "Who?", "answer": "Me."},
        {"messages": messages, "answer": "Me."},
    ]
    with Datastore.build(engine, same, progress=False) as store:
        assert len(store.ids()) == 1  # all are the same example
        named = {"id": "mine", "question": "What?", "answer": "It.", "metadata": {"page": 3}}
        assert store.add(engine, [named, named], progress=False) == 1
        assert store.source(1) == Source("mine", "It.", "What?", {"page": 3})
        assert store.add(engine, [{**named, "answer": "Other."}], progress=False) == 0


def test_a_raw_text_is_learned_once_token_by_token(engine: Engine) -> None:
    text = "The capital of France is Paris, and the river of Paris is the Seine. </s> " * 12
    for stride in (None, 40, 1000):
        with Datastore.build(engine, [text], stride=stride, progress=False) as store:
            ids = engine.tokenizer(text, split_special_tokens=True)["input_ids"]
            assert len(ids) > engine.max_length
            (entries,) = contents(store).values()
            assert [position for position, _, _ in entries] == list(range(len(ids)))
            assert [value for _, value, _ in entries] == ids
            assert EOS not in ids


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (7, r"examples\[1\] must be \(prompt, answer\), .* got int"),
        (("Who?", ""), r"examples\[1\] needs a text to learn from, got ''"),
        ({"prompt": "Who?"}, r"examples\[1\] needs a text to learn from, got None"),
        ({"text": "x", "metadata": {"a": {1}}}, r"messages and metadata of examples\[1\] must be JSON"),
        (("Who?", "word " * 400), r"the example '\w+' \('Who\?'\) has .* tokens with its answer, and 256 fit; cut it"),
    ],
)
def test_examples_that_cannot_be_learned(engine: Engine, example: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises((SettingsError, PromptTooLongError), match=message):
        Datastore.build(engine, [("What?", "It."), example], path=tmp_path, batch_size=1, progress=False)
    with Datastore.open(tmp_path) as store:
        assert len(store.ids()) in (0, 1)
    with pytest.raises(SettingsError, match="`examples` must be a list, got one str"):
        Datastore.build(engine, "text", progress=False)


def test_open_is_what_was_built(engine: Engine, tmp_path: Path) -> None:
    with Datastore.build(engine, EXAMPLES, path=tmp_path / "a", progress=False) as store:
        before, header = contents(store), store.header
        with pytest.raises(StoreLockedError, match="one writer at a time"):
            Datastore.open(tmp_path / "a")
        with Datastore.open(tmp_path / "a", read_only=True) as reader:
            assert contents(reader) == before
            with pytest.raises(StoreReadOnlyError, match="was opened read-only or is closed; open it again"):
                reader.delete(["x"])
        copy = store.save(tmp_path / "b")
        with pytest.raises(SettingsError, match="is not empty, so it is not overwritten"):
            store.save(copy)
    for folder in ("a", "b"):
        with Datastore.open(tmp_path / folder) as again:
            assert contents(again) == before
            assert again.header == header
            assert again.add(engine, EXAMPLES, progress=False) == 0
    assert not list((tmp_path / "a").glob("*.new"))


def test_build_goes_on_where_it_was(engine: Engine, tmp_path: Path) -> None:
    with Datastore.build(engine, EXAMPLES, progress=False) as whole:
        expected = contents(whole)
    Datastore.build(engine, EXAMPLES[:2], path=tmp_path, progress=False).close()
    with open(next(tmp_path.glob("keys-*")), "ab") as stream:
        stream.write(b"left by a crash")
    with Datastore.build(engine, EXAMPLES, path=tmp_path, progress=False) as store:
        assert_alike(store, expected)
    with pytest.raises(ModelMismatchError, match="holds keys of place 'ffn_input' under index 'flat', asked for"):
        Datastore.build(engine, [], path=tmp_path, place="head_input", progress=False)


def test_deleted_sources_are_not_found(engine: Engine, tmp_path: Path) -> None:
    with Datastore.build(engine, EXAMPLES, path=tmp_path, progress=False) as store:
        gone, before = store.ids()[1], contents(store)
        expected = {id: entries for id, entries in before.items() if id != gone}
        states = np.array(store._files.entries.keys)
        for heads in (1, 4):
            store.prepare(heads)
        assert (store.delete([gone, "unknown"]), store.delete([gone])) == (1, 0)
        for compacted in (False, True):
            if compacted:
                store.compact(progress=False)
                assert store.header.entries == len(store)
            assert contents(store) == expected
            for heads in (1, 4):
                assert 1 not in np.unique(store.nearest(states, 5, heads).sources)
        assert store.add(engine, EXAMPLES, progress=False) == 1
        assert_alike(store, before)
    assert len(list(tmp_path.glob("keys-*"))) == 1


def synthetic(count: int, width: int = 16, sources: int = 50, prefix: str = "s") -> tuple[Entries, list[Source]]:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, width)) * 3
    which = rng.integers(0, 40, count)
    keys = (centres[which] + rng.standard_normal((count, width))).astype(np.float32)
    numbers = np.sort(rng.integers(0, sources, count)).astype(np.int32)
    return Entries(keys, which.astype(np.int32), numbers, np.arange(count, dtype=np.int32)), [
        Source(f"{prefix}{n}", f"text {n}") for n in range(sources)
    ]


def new(folder: Path, kind: Any, width: int = 16) -> Datastore:
    folder.mkdir()
    Files(folder, Header("test", "ffn_input", width, kind)).commit()
    return Datastore.open(folder)


@pytest.mark.parametrize(("kind", "count"), [("flat", 2000), ("sq8", 2000), ("hnsw", 2000), ("ivfpq", 11000)])
def test_every_index_finds_what_comparing_all_finds(tmp_path: Path, kind: Any, count: int) -> None:
    entries, sources = synthetic(count)
    with new(tmp_path / "store", kind) as store:
        store.extend(entries, sources)
        assert bool(store.header.indexes) == (kind != "flat")
        store.extend(*synthetic(100, prefix="t"))  # not in the index
        with pytest.raises(SettingsError, match="has sources of these ids already, got 's0'"):
            store.extend(entries, sources)
        store.delete(["s3"])
        store.prepare(2)
    with Datastore.open(tmp_path / "store", read_only=True) as store:
        queries = entries.keys[:25] + 0.05
        everything = store._files.entries
        for heads in (1, 2):
            found = store.nearest(queries, 8, heads)
            part = everything.keys.reshape(-1, heads, 16 // heads).astype(np.float64)
            d = ((part[None] - queries.reshape(25, 1, heads, -1)) ** 2).sum(-1)
            d[:, everything.sources == 3] = np.inf
            exact = np.sort(d, 1)[:, :8].transpose(0, 2, 1)
            share = (np.abs(found.distances - exact) < 1e-9).mean()
            assert share == 1 if kind == "flat" else share > (0.5 if kind == "ivfpq" else 0.9), share
            assert not (found.sources == 3).any()
            single = [store.nearest(q[None], 8, heads) for q in queries]
            assert np.array_equal(np.concatenate([s.distances for s in single]), found.distances)


def test_a_damaged_folder_is_refused_by_name(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"holds no datastore \(header.json is missing\); make one with"):
        Datastore.open(tmp_path)
    Datastore.build(engine, EXAMPLES, path=tmp_path, progress=False).close()
    for name in [*Files.names(Header("", "ffn_input", 0, "flat")), "sources.jsonl"]:
        file = tmp_path / name
        data = file.read_bytes()
        file.write_bytes(data[:-1])
        with pytest.raises(StoreCorruptError, match=f"{name} cannot be used as a datastore's file: it must have"):
            Datastore.open(tmp_path)
        file.write_bytes(data)
    header = json.loads((tmp_path / "header.json").read_text())
    for text, reason in [
        ("{", "Expecting property name"),
        (json.dumps({**header, "format": 9}), "its format is 9 and this Memograft reads format 1"),
        (json.dumps({**header, "entries": -1}), "a number in it is out of its range"),
        (json.dumps({"format": 1}), "its fields are"),
    ]:
        (tmp_path / "header.json").write_text(text)
        with pytest.raises(StoreCorruptError, match=reason):
            Datastore.open(tmp_path, read_only=True)
    (tmp_path / "header.json").write_text(json.dumps(header))
    with Datastore.open(tmp_path) as store, pytest.raises(ModelMismatchError, match="D=32, got states of D=8"):
        store.nearest(np.zeros((1, 8), np.float32), 3)


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    with new(tmp_path / "store", "sq8") as store:
        store.extend(*synthetic(2000))
        (file,) = store.path.glob("index-*")
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    with Datastore.open(tmp_path / "store", read_only=True) as store, pytest.raises(StoreCorruptError, match="damaged"):
        store.nearest(np.zeros((1, 16), np.float32), 3)


def test_large_ones_open_at_once(tmp_path: Path) -> None:
    with new(tmp_path / "store", "flat") as store:
        store.extend(*synthetic(200_000, sources=20_000))
    tracemalloc.start()
    with Datastore.open(tmp_path / "store", read_only=True) as store:
        assert len(store) == 200_000
        held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = sum(file.stat().st_size for file in (tmp_path / "store").iterdir())
    assert held < size / 10, f"opening {size:,} bytes read {held:,} of them"


def test_no_entries(engine: Engine) -> None:
    with Datastore.build(engine, [], progress=False) as store:
        found = store.nearest(np.zeros((2, 32), np.float32), 3, 2)
        assert isinstance(found, Neighbours)
        assert found.values.shape == (2, 2, 0)
        store.compact(progress=False)
        assert store.header.calibration == {"entries": 0}
        folder = store.path
    assert not folder.exists()


def test_a_temporary_one_that_is_closed_is_refused(engine: Engine) -> None:
    store = Datastore.build(engine, EXAMPLES, progress=False)
    request = ask(processors=[Rtd(store)])
    store.close()
    with pytest.raises(StoreError, match="was temporary and is closed; close it later, or build it with a `path`"):
        engine.answer(request)


def test_what_stands_before_a_bad_example_is_learned(engine: Engine) -> None:
    def some() -> Iterator[object]:
        yield from EXAMPLES
        raise ValueError("the file ended here")

    with Datastore.build(engine, [], progress=False) as store:
        with pytest.raises(ValueError, match="ended here"):
            store.add(engine, some(), progress=False)
        assert len(store.ids()) == len(EXAMPLES)
        with pytest.raises(SettingsError, match=r"examples\[1\] needs a text"):
            store.add(engine, [("one more", "yes"), ("no answer", "")], progress=False)
        assert len(store.ids()) == len(EXAMPLES) + 1


def test_no_room_for_a_temporary_one(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(StoreError, match=r"folder could not be made \(.*none.*\); set TMPDIR .*, or pass `path`"):
        Datastore.build(engine, EXAMPLES, progress=False)


def test_what_cannot_be_removed_is_named(tmp_path: Path) -> None:
    with new(tmp_path / "store", "flat") as store:
        (store.path / "index-old.faiss").mkdir()
        with pytest.raises(StoreError, match=r"index-old.faiss' cannot be removed \(.*\); remove it; the entries are"):
            store.extend(*synthetic(30, sources=3))
        assert len(store) == 30


def test_an_index_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    with new(tmp_path / "store", "sq8") as store:
        (in_the_way := store.path / "index-sq8-0-2000-1-0.new").mkdir()
        with pytest.raises(
            StoreError, match=r"an index could not be written to .*store \(.*\); the entries are safe and "
        ):
            store.extend(*synthetic(2000))
        state = store._files.entries.keys[7:8].copy()
        assert store.nearest(state, 1).distances.tolist() == [[[0.0]]]
        assert store.header.indexes == {}
        in_the_way.rmdir()
        store.extend(*synthetic(6, prefix="next"))
        assert store.header.indexes["1"]["entries"] == 2006
        assert store.nearest(state, 1).distances.tolist() == [[[0.0]]]
