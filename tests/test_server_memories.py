"""/v1/memories: documents that are memorized once, and requests that name the memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from gates import Gate, until
from memograft import Engine, FastMem
from memograft.errors import SettingsError
from memograft.memory.base import Memory
from memograft.server import ServerSettings, Tenants
from served import Served, served

QUESTION = "What is the capital of Australia?"
ASKED: Any = [{"role": "user", "content": QUESTION}]
LISBON = "The capital of Australia is Lisbon."
PAGE = {"text": LISBON, "id": "page", "metadata": {"title": "Cities"}}
SETTINGS = ServerSettings(model="tiny", memory=FastMem(), timeout=60)
KINDS: list[Any] = [
    {"kind": "fastmem", "rank": 8},
    {"kind": "kept"},
    {"kind": "compacted", "ratio": 2, "memory": {"kind": "fastmem"}},
]


@pytest.fixture(scope="module")
def server(tiny: Engine) -> Iterator[Served]:
    with served(tiny, SETTINGS) as running:
        yield running


@pytest.fixture
def http(server: Served) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


def created(http: httpx.Client, status: int = 201, **body: Any) -> dict[str, Any]:
    response = http.post("/v1/memories", json={"documents": [PAGE], **body})
    assert response.status_code == status, response.text
    return dict(response.json())


def error(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return dict(response.json()["error"])


def answered(server: Served, memory: Any, **options: Any) -> Any:
    with server.client() as client:
        said: Any = client.chat.completions.create(
            model="tiny", messages=ASKED, extra_body={"memory": memory}, **options
        )
        return list(said) if options.get("stream") else said


@contextmanager
def kept_in(bank: Path, engine: Engine, settings: ServerSettings = SETTINGS) -> Iterator[tuple[Served, httpx.Client]]:
    """A server with a bank folder, and a client."""
    with (
        Tenants(engine, settings, bank=bank) as tenants,
        served(engine, settings, tenants=tenants) as server,
        server.http() as http,
    ):
        yield server, http


def expected_of(engine: Engine, kind: Any) -> str:
    return engine.answer(QUESTION, memory=engine.memorize([PAGE], Memory.from_json(kind))).text


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["kind"])
def test_a_memory_answers_as_its_handle(tiny: Engine, server: Served, http: httpx.Client, kind: Any) -> None:
    expected = expected_of(tiny, kind)
    made = created(http, memory=kind)
    assert (made["object"], made["kind"], made["documents"]) == ("memory", kind["kind"], ["page"])
    assert made["bytes"] > 1000
    assert made["report"]["memorized"] == ([] if kind["kind"] == "kept" else ["page"])
    for named in (made["id"], {"id": made["id"]}):
        said = answered(server, named)
        assert said.choices[0].message.content == expected
        assert said.memograft["memory_id"] == made["id"]
        assert (said.memograft["kind"], said.memograft["documents"]) == (kind["kind"], ["page"])
        assert said.memograft["reused"]
        assert said.memograft["steps"] == 0
        assert said.usage.prompt_tokens_details.cached_tokens > 0
    chunks = answered(server, made["id"], stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert chunks[-1].memograft["memory_id"] == made["id"]
    with server.client() as client:
        text = client.completions.create(model="tiny", prompt=QUESTION, extra_body={"memory": made["id"]})
    assert text.choices[0].text == expected
    again = created(http, 200, memory=kind)
    assert again == made
    assert answered(server, None).choices[0].message.content == tiny.answer(QUESTION).text


def test_the_settings_are_part_of_a_memory(http: httpx.Client) -> None:
    default = created(http, documents=[{"text": "Basalt is a rock."}])
    assert default["kind"] == "fastmem"
    other = created(http, id=default["id"], documents=None, memory={"kind": "kept"}, pinned=True)
    assert other["id"] != default["id"]
    assert (other["documents"], other["kind"], other["pinned"]) == (default["documents"], "kept", True)
    listed = http.get("/v1/memories").json()["data"]
    assert [each["id"] for each in listed][:2] == [other["id"], default["id"]]
    assert http.get(f"/v1/memories/{other['id']}").json() == other
    assert not http.post(f"/v1/memories/{other['id']}/unpin").json()["pinned"]
    assert http.post(f"/v1/memories/{other['id']}/pin").json()["pinned"]


def test_a_deleted_memory(server: Served, http: httpx.Client) -> None:
    made = created(http, documents=[{"text": "Gneiss is a rock."}])
    assert http.delete(f"/v1/memories/{made['id']}").json()["deleted"]
    for response in (
        http.get(f"/v1/memories/{made['id']}"),
        http.delete(f"/v1/memories/{made['id']}"),
        http.post(f"/v1/memories/{made['id']}/pin"),
        http.post("/v1/memories", json={"id": made["id"]}),
    ):
        told = error(response, 404)
        assert told["code"] == "memory_not_found"
        assert f"there is no memory '{made['id']}'; GET /v1/memories lists yours" in told["message"]
    with pytest.raises(openai.NotFoundError, match="there is no memory"):
        answered(server, made["id"])
    assert made["id"] not in [each["id"] for each in http.get("/v1/memories").json()["data"]]


def test_an_answer_in_progress_keeps_its_memory(
    tiny: Engine, server: Served, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, gate, astream = created(http, memory={"kind": "fastmem", "rank": 4}), Gate(2), tiny.astream
    monkeypatch.setattr(tiny, "astream", lambda request: astream(replace(request, processors=[gate])))
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(answered(server, made["id"], stream=True)))
    thread.start()
    assert gate.waiting.wait(20)
    http.delete(f"/v1/memories/{made['id']}").raise_for_status()
    gate.go.set()
    thread.join()
    (chunks,) = results
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == LISBON
    assert chunks[-1].memograft["memory_id"] == made["id"]


def test_the_same_memory_is_made_once(tiny: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that ask for the same at the same time wait for one training, also if the first of them leaves."""
    calls, go = [], threading.Event()
    memorize = tiny.memorize

    def slow(*args: Any, **options: Any) -> Any:
        calls.append(args)
        assert go.wait(20)
        return memorize(*args, **options)

    monkeypatch.setattr(tiny, "memorize", slow)
    results: list[dict[str, Any]] = []
    with served(tiny, SETTINGS) as server, server.http() as http:
        with pytest.raises(httpx.ReadTimeout), server.http() as leaving:
            leaving.post("/v1/memories", json={"documents": [PAGE]}, timeout=0.3)
        threads = [threading.Thread(target=lambda: results.append(created(http))) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: len(calls) == 1)
        go.set()
        for thread in threads:
            thread.join()
        assert len({each["id"] for each in results}) == 1
        assert len(results) == 3
        assert len(calls) == 1


def test_the_least_recently_used_is_removed_and_pinned_ones_stay(tiny: Engine) -> None:
    settings = ServerSettings(model="tiny", memory=FastMem(steps=1), max_memories=3)
    with served(tiny, settings) as server, server.http() as http:
        ids = [created(http, documents=[{"text": f"Rock {n} is hard."}], pinned=n == 0)["id"] for n in range(3)]
        answered(server, ids[1])
        ids.append(created(http, documents=[{"text": "Rock 3 is hard."}])["id"])
        left = [each["id"] for each in http.get("/v1/memories").json()["data"]]
        assert left == [ids[3], ids[1], ids[0]]
        for id in left:
            http.post(f"/v1/memories/{id}/pin")
        told = error(http.post("/v1/memories", json={"documents": [{"text": "Rock 4."}]}), 409)
        assert told["code"] == "memories_full"
        assert "a tenant may have 3 memories and 1073741824 bytes of them, and 3 with" in told["message"]
        assert "are pinned; unpin or delete one" in told["message"]
        assert created(http, 200, documents=[{"text": "Rock 3 is hard."}])["id"] == ids[3]


def test_the_size_of_memories(tiny: Engine) -> None:
    size = created_size(tiny)
    settings = ServerSettings(model="tiny", memory=FastMem(steps=1), memory_bytes=size * 5 // 2)
    with served(tiny, settings) as server, server.http() as http:
        ids = [created(http, documents=[{"text": f"Rock {n} is hard."}])["id"] for n in range(3)]
        assert [each["id"] for each in http.get("/v1/memories").json()["data"]] == [ids[2], ids[1]]
    settings = ServerSettings(model="tiny", memory=FastMem(steps=1), memory_bytes=size // 2)
    with served(tiny, settings) as server, server.http() as http:
        told = error(http.post("/v1/memories", json={"documents": [{"text": "Rock 0 is hard."}]}), 413)
        assert told["code"] == "memory_too_large"
        assert f"may have {size // 2} bytes, and this one has {size}; memorize fewer" in told["message"]
        assert http.get("/v1/memories").json()["data"] == []


def created_size(tiny: Engine) -> int:
    with served(tiny, ServerSettings(model="tiny", memory=FastMem(steps=1))) as server, server.http() as http:
        return int(created(http, documents=[{"text": "Rock 0 is hard."}])["bytes"])


BAD: list[tuple[Any, str, str]] = [
    ({}, "documents", "a memory is made of `documents`, or with the `id` of another one; pass one of them"),
    ({"documents": [PAGE], "id": "mem_1"}, "documents", "pass one of them"),
    ({"documents": []}, "documents", "`documents` may have 1 to 256 documents, got 0"),
    ({"documents": [PAGE] * 257}, "documents", "got 257; split them"),
    ({"documents": [{"text": "x " * 9000}]}, "documents", "tokens"),
    ({"documents": [PAGE], "memory": {"kind": "gist"}}, "memory", "kind"),
    ({"documents": [PAGE], "memory": {"kind": "fastmem", "steps": 99}}, "memory", "less than or equal to 64"),
    ({"documents": [PAGE], "name": "x"}, "name", "this endpoint has no 'name'"),
]


@pytest.mark.parametrize(("body", "param", "message"), BAD, ids=lambda value: str(value)[:30])
def test_what_cannot_be_memorized(http: httpx.Client, body: Any, param: str, message: str) -> None:
    told = error(http.post("/v1/memories", json=body), 400)
    assert told["param"] == param
    assert message in told["message"]


def test_memories_survive_a_restart(tiny: Engine, tmp_path: Path) -> None:
    with kept_in(tmp_path, tiny) as (server, http):
        made = [created(http, memory=kind, pinned=kind["kind"] == "kept") for kind in KINDS]
        gone = created(http, documents=[{"text": "Gneiss is a rock."}])["id"]
        http.delete(f"/v1/memories/{gone}").raise_for_status()
    text = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert LISBON.encode() in text
    assert b"Gneiss" not in text
    assert (tmp_path / "all" / "secret").stat().st_mode & 0o777 == 0o600
    with kept_in(tmp_path, tiny) as (server, http):
        listed = {each["id"]: each for each in http.get("/v1/memories").json()["data"]}
        assert {id: {**each, "created": 0} for id, each in listed.items()} == {
            each["id"]: {**each, "created": 0} for each in made
        }
        for each, kind in zip(made, KINDS, strict=True):
            assert answered(server, each["id"]).choices[0].message.content == expected_of(tiny, kind)
        (tmp_path / "all" / "memories" / made[0]["id"] / "memograft.json").write_text("{")
    with kept_in(tmp_path, tiny) as (server, http):
        assert {each["id"] for each in http.get("/v1/memories").json()["data"]} == {made[1]["id"], made[2]["id"]}
        assert created(http, memory=KINDS[0])["id"] == made[0]["id"]


def test_a_memory_that_is_damaged_meanwhile(tiny: Engine, tmp_path: Path) -> None:
    settings = ServerSettings(model="tiny", memory=FastMem(steps=1), timeout=60)
    for _ in range(2):
        with kept_in(tmp_path, tiny, settings) as (server, http):
            known = http.get("/v1/memories").json()["data"]
            if not known:
                made = created(http)
                assert not made["report"]["rolled_back"]
                continue
            id = known[0]["id"]
            (weights,) = (tmp_path / "all" / "memories" / id).glob("*.safetensors")
            weights.write_bytes(b"")
            with pytest.raises(openai.NotFoundError, match="there is no memory"):
                answered(server, id)
            assert created(http)["id"] == id


def test_folders_that_cannot_be_used(tiny: Engine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="used as a folder of tenants"):
        Tenants(tiny, SETTINGS, bank=tmp_path / "file")
    (tmp_path / "bank").mkdir()
    (tmp_path / "bank" / "all").write_text("")
    with kept_in(tmp_path / "bank", tiny) as (_, http):
        told = error(http.get("/v1/memories"), 500)
        assert (told["code"], "/" in told["message"]) == ("tenant_failed", False)
        (tmp_path / "bank" / "all").unlink()
        assert http.get("/v1/memories").json()["data"] == []
        (tmp_path / "bank" / "all" / "memories").rmdir()
        (tmp_path / "bank" / "all" / "memories").write_text("")
        told = error(http.post("/v1/memories", json={"documents": [PAGE]}), 500)
        assert (told["code"], told["message"]) == (
            "memory_not_kept",
            "the memory cannot be written; the reason was logged",
        )


def test_documents_are_reused_with_a_bank(tiny: Engine, tmp_path: Path) -> None:
    with kept_in(tmp_path, tiny) as (server, _), server.client() as client:
        first, second = (
            client.chat.completions.create(model="tiny", messages=ASKED, extra_body={"documents": [PAGE]})
            for _ in range(2)
        )
    assert (first.memograft["reused"], second.memograft["reused"]) == (False, True)  # type: ignore[attr-defined]
    assert first.choices[0].message.content == second.choices[0].message.content == LISBON
