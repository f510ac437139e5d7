"""/v1/stores: documents and files that clients put there, search, and answers with what was found and cited."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import httpx
import openai
import pytest

from memograft import Document, Engine, FastMem, LexicalEmbedder, VectorStore
from memograft.passages.reading import SUFFIXES
from memograft.server import ServerSettings, Tenants
from memograft.server.owned import cited
from served import Served, served
from test_reading import write_pdf

QUESTION = "What is the capital of Australia?"
ASKED: Any = [{"role": "user", "content": QUESTION}]
LISBON = "The capital of Australia is Lisbon."
PAGES = [
    {"text": LISBON, "id": "cities", "metadata": {"year": 2001, "title": "Cities"}},
    {"text": "Bergamot is a citrus fruit.", "id": "fruit", "metadata": {"year": 1999}},
    {"text": "Basalt is a dark rock.", "id": "rocks"},
]
SETTINGS = ServerSettings(
    model="tiny", memory=FastMem(), timeout=60, max_stores=3, max_passages=40, store_bytes=4 << 20, max_upload=100_000
)


@pytest.fixture(params=["memory", "folder"])
def server(tiny: Engine, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    stores = tmp_path / "stores" if request.param == "folder" else None
    with (
        Tenants(tiny, SETTINGS, stores=stores, embedder=LexicalEmbedder(64)) as tenants,
        served(tiny, SETTINGS, tenants=tenants) as running,
    ):
        yield running


@pytest.fixture
def http(server: Served) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


def error(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return dict(response.json()["error"])


def filled(http: httpx.Client, name: str = "docs", pages: Any = PAGES) -> dict[str, Any]:
    made = http.post("/v1/stores", json={"name": name})
    assert (made.status_code, made.json()["documents"]) == (201, 0), made.text
    added = http.post(f"/v1/stores/{name}/documents", json={"documents": pages})
    assert added.status_code == 201, added.text
    return dict(added.json())


def found(http: httpx.Client, query: str, name: str = "docs", **options: Any) -> list[str]:
    response = http.post(f"/v1/stores/{name}/search", json={"query": query, **options})
    assert response.status_code == 200, response.text
    return [hit["id"] for hit in response.json()["data"]]


def test_documents_are_added_listed_found_and_deleted(http: httpx.Client) -> None:
    added = filled(http)
    assert added["ids"] == ["cities", "fruit", "rocks"]
    store = added["store"]
    assert (store["name"], store["documents"], store["dimensions"], store["read_only"]) == ("docs", 3, 64, False)
    assert store["bytes"] > 60
    assert [each["name"] for each in http.get("/v1/stores").json()["data"]] == ["docs"]
    assert http.get("/v1/stores/docs").json() == store
    page = http.get("/v1/stores/docs/documents", params={"limit": 2}).json()
    assert [each["id"] for each in page["data"]] == ["cities", "fruit"]
    assert (page["total"], page["has_more"], page["data"][0]["text"]) == (3, True, LISBON)
    rest = http.get("/v1/stores/docs/documents", params={"limit": 2, "offset": 2}).json()
    assert ([each["id"] for each in rest["data"]], rest["has_more"]) == (["rocks"], False)
    assert http.get("/v1/stores/docs/documents", params={"offset": 9}).json()["data"] == []
    for mode in ("text", "vector", "hybrid", None):
        assert found(http, "a dark rock", mode=mode, k=1) == ["rocks"]
    assert found(http, "a citrus fruit", where={"year": {"$gte": 2000}}) == ["cities"]
    hit = http.post("/v1/stores/docs/search", json={"query": QUESTION, "k": 1}).json()["data"][0]
    assert (hit["text"], hit["metadata"]["title"]) == (LISBON, "Cities")
    assert 0 < hit["score"] <= 1
    assert http.delete("/v1/stores/docs/documents/rocks").json()["deleted"]
    told = error(http.delete("/v1/stores/docs/documents/rocks"), 404)
    assert told["message"] == "the store 'docs' has no document 'rocks'; GET its documents for their ids"
    again = http.post("/v1/stores/docs/documents", json={"documents": [{"text": "Fig.", "id": "fruit"}]}).json()
    assert again["store"]["documents"] == 2
    assert http.delete("/v1/stores/docs").json()["deleted"]
    assert http.get("/v1/stores").json()["data"] == []
    assert error(http.get("/v1/stores/docs"), 404)["code"] == "store_not_found"
    filled(http)  # the name is free again


def test_files(http: httpx.Client, tmp_path: Path) -> None:
    http.post("/v1/stores", json={"name": "docs"}).raise_for_status()
    text = "\n\n".join(f"Paragraph {n} about rocks of kind {n}. " + "They are hard. " * 20 for n in range(8))
    files = [
        ("file", ("rocks.txt", text.encode())),
        ("file", ("notes/guide.md", b"# Guide\n\nMarble is a soft rock.")),
        ("file", ("page.html", b"<title>Sand</title><script>no()</script><p>Sand is a loose rock.</p>")),
        ("file", ("granite.pdf", write_pdf(tmp_path / "any.pdf", ["Granite is a pale hard rock."]).read_bytes())),
    ]
    added = http.post("/v1/stores/docs/documents", files=files)
    assert added.status_code == 201, added.text
    ids = added.json()["ids"]
    assert [id for id in ids if not id.startswith("rocks")] == ["guide.md#0", "page.html#0", "granite.pdf#0"]
    assert len([id for id in ids if id.startswith("rocks.txt#")]) > 3
    for query, id in (("loose sand", "page.html#0"), ("soft marble", "guide.md#0"), ("pale granite", "granite.pdf#0")):
        assert found(http, query, k=1, mode="text") == [id]
    about = http.post("/v1/stores/docs/search", json={"query": "sand", "k": 1, "mode": "text"}).json()["data"][0]
    assert "no()" not in about["text"]
    assert (about["metadata"]["source"], about["metadata"]["title"]) == ("page.html", "Sand")
    http.post("/v1/stores/docs/documents", files=[("file", ("rocks.txt", b"Slate."))]).raise_for_status()
    left = [each["id"] for each in http.get("/v1/stores/docs/documents").json()["data"]]
    assert sorted(left) == ["granite.pdf#0", "guide.md#0", "page.html#0", "rocks.txt#0"]
    assert http.delete("/v1/stores/docs/documents/guide.md%230").json()["id"] == "guide.md#0"


BAD_FILES: list[tuple[Any, str]] = [
    ([("file", ("a.exe", b"x"))], f"a file must be one of {', '.join(sorted(SUFFIXES))}, got the name 'a.exe'"),
    ([("file", ("a.txt", b"\xff\xff\xff"))], "'a.txt' must be UTF-8 text, and is not at byte 0"),
    ([("file", ("a.txt", b"  "))], "'a.txt' holds no text"),
    ([("file", ("../../a.pdf", b"no pdf"))], "'a.pdf' cannot be read as PDF"),
    ([("other", ("a.txt", b"x"))], "the form must have files named 'file', and nothing else, got ['other']"),
    ([("file", ("a.txt", b"x"))] * 101, "the form cannot be read: Too many files"),
]


@pytest.mark.parametrize("server", ["memory"], indirect=True)
@pytest.mark.parametrize(("files", "message"), BAD_FILES, ids=lambda value: str(value)[:30])
def test_files_that_cannot_be_read(http: httpx.Client, files: Any, message: str) -> None:
    http.post("/v1/stores", json={"name": "docs"}).raise_for_status()
    told = error(http.post("/v1/stores/docs/documents", files=[*files, ("file", ("good.txt", b"Slate."))]), 400)
    assert message in told["message"]
    assert "/tmp" not in told["message"]
    assert (told["param"], http.get("/v1/stores/docs").json()["documents"]) == ("file", 0)


@pytest.mark.parametrize("server", ["memory"], indirect=True)
def test_bodies_that_are_refused(http: httpx.Client) -> None:
    http.post("/v1/stores", json={"name": "docs"}).raise_for_status()
    path = "/v1/stores/docs/documents"
    for body, param, message in (
        ({"documents": []}, "documents", "`documents`: list should have at least 1 item"),
        ({"documents": [{"id": "a"}]}, "documents", "`documents.0.text` is required"),
        ({"documents": PAGES, "other": 1}, "other", "this endpoint has no 'other'"),
        ({"documents": [{"text": " "}]}, None, "text"),
    ):
        told = error(http.post(path, json=body), 400)
        assert message in told["message"]
        assert told["param"] == param or param is None
    json = {"Content-Type": "application/json"}
    assert "the body must be JSON" in error(http.post(path, content=b"{", headers=json), 400)["message"]
    told = error(http.post(path, content=b"x", headers={"Content-Type": "text/plain"}), 400)
    assert "the content type must be application/json or multipart/form-data, got 'text/plain'" in told["message"]
    for body, message in (
        ({"query": "x", "k": 0}, "greater than or equal to 1"),
        ({"query": "x", "mode": "exact"}, "`mode`"),
        ({"query": "x", "where": {"year": {"$near": 1}}}, "unknown operator"),
    ):
        assert message in error(http.post("/v1/stores/docs/search", json=body), 400)["message"]
    for name in ("", "..", "A", "a/b", "x" * 65, ".hidden", "a."):
        assert (
            "`name` must be up to 64 small letters"
            in error(http.post("/v1/stores", json={"name": name}), 400)["message"]
        )
    for method, there in (("GET", ""), ("DELETE", ""), ("GET", "/documents"), ("DELETE", "/documents/a")):
        told = error(http.request(method, f"/v1/stores/none{there}"), 404)
        assert told["message"].startswith("there is no store 'none'; GET /v1/stores lists yours")
    for there, body in (("/documents", {"documents": PAGES}), ("/search", {"query": "x"})):
        assert error(http.post(f"/v1/stores/none{there}", json=body), 404)["code"] == "store_not_found"


def test_limits(http: httpx.Client) -> None:
    filled(http)
    assert "there is a store 'docs' already" in error(http.post("/v1/stores", json={"name": "docs"}), 409)["message"]
    for name in ("b", "c"):
        filled(http, name)
    assert "a tenant may have 3 stores" in error(http.post("/v1/stores", json={"name": "d"}), 409)["message"]
    many = [{"text": f"Rock {n}."} for n in range(38)]
    told = error(http.post("/v1/stores/docs/documents", json={"documents": many}), 413)
    assert (told["message"], told["code"]) == (
        "a store may have 40 passages, and would have 41; delete some",
        "store_full",
    )
    assert http.post("/v1/stores/docs/documents", json={"documents": many[:37]}).status_code == 201
    assert http.post("/v1/stores/docs/documents", json={"documents": many[:37]}).status_code == 201  # replaced
    told = error(http.post("/v1/stores/docs/documents", content=b"x" * 100_001), 413)
    assert "may have 100000 bytes" in told["message"]


def test_the_size_of_stores(tiny: Engine, tmp_path: Path) -> None:
    settings = ServerSettings(model="tiny", store_bytes=1000)
    with served(tiny, settings, tenants=Tenants(tiny, settings)) as server, server.http() as http:
        filled(http)
        told = error(http.post("/v1/stores/docs/documents", json={"documents": [{"text": "x" * 990}]}), 413)
        assert "a tenant's stores may have 1000 bytes, and would have 11" in told["message"]
        assert found(http, "basalt", k=1) == ["rocks"]  # a store without an embedder is searched by words
        told = error(http.post("/v1/stores/docs/search", json={"query": "x", "mode": "vector"}), 400)
        assert "made without an embedder" in told["message"]


def test_an_answer_from_a_store_cites_it(tiny: Engine, server: Served, http: httpx.Client) -> None:
    filled(http)
    with server.client() as client:
        said: Any = client.chat.completions.create(
            model="tiny", messages=ASKED, extra_body={"store": {"name": "docs", "k": 2}}
        )
        chunks: Any = list(
            client.chat.completions.create(
                model="tiny",
                messages=[
                    *ASKED,
                    {"role": "assistant", "content": "?"},
                    {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
                ],
                extra_body={"store": {"name": "docs", "k": 1, "mode": "text", "where": {"year": 2001}}},
                stream=True,
            )
        )
    report = said.memograft
    assert said.choices[0].message.content == LISBON
    assert (report["store"], report["documents"][0], report["memorized"]) == ("docs", "cities", ["cities"])
    first, second = report["retrieved"]
    assert (first["id"], first["text"], first["cited"], second["cited"]) == ("cities", LISBON, True, False)
    assert first["score"] > second["score"]
    place = {"start": 0, "end": len(LISBON) - 1, "document_start": 0, "document_end": len(LISBON) - 1}
    assert report["citations"] == [{"text": LISBON[:-1], "document": "cities", **place}]
    assert [each["id"] for each in chunks[-1].memograft["retrieved"]] == ["cities"]


def test_a_store_with_documents_and_a_question_of_its_own(server: Served, http: httpx.Client) -> None:
    filled(http)
    body = {"documents": [PAGES[2], PAGES[0]], "query": "a citrus fruit", "store": {"name": "docs", "k": 1}}
    asked: Any = [{"role": "user", "content": f"{QUESTION} And what is a citrus fruit?"}]
    with server.client() as client:
        said: Any = client.chat.completions.create(model="tiny", messages=asked, extra_body=body)
        assert said.memograft["documents"] == ["rocks", "cities", "fruit"]
        body = {"documents": [PAGES[0]], "store": {"name": "docs", "k": 1}}
        said = client.chat.completions.create(model="tiny", messages=ASKED, extra_body=body)
        assert said.memograft["documents"] == ["cities"]  # once, although it was retrieved too
        with pytest.raises(openai.NotFoundError, match="there is no store 'none'"):
            client.chat.completions.create(model="tiny", messages=ASKED, extra_body={"store": {"name": "none"}})
        where = {"store": {"name": "docs", "where": {"a": {"$b": 1}}}}
        with pytest.raises(openai.BadRequestError, match="unknown operator"):
            client.chat.completions.create(model="tiny", messages=ASKED, extra_body=where)
        with pytest.raises(openai.BadRequestError, match="`store`"):
            client.chat.completions.create(model="tiny", messages=ASKED, store=True)
        with pytest.raises(openai.BadRequestError, match="needs a user message with text"):
            client.chat.completions.create(
                model="tiny", messages=[{"role": "system", "content": "x"}], extra_body={"store": {"name": "docs"}}
            )
        http.delete("/v1/stores/docs").raise_for_status()
        http.post("/v1/stores", json={"name": "docs"}).raise_for_status()
        said = client.chat.completions.create(model="tiny", messages=ASKED, extra_body={"store": {"name": "docs"}})
        assert (said.memograft["retrieved"], said.memograft["citations"]) == ([], [])


def test_citations() -> None:
    first = Document("The river Aare is 288 km long. It flows north.", "a")
    second = Document("Bern lies on the river Aare, and is the capital of Switzerland.", "b")
    text = "Bern is the capital of Switzerland. The Aare is 288 km long! Nothing else is known. North."
    got = cited(text, [first, second])
    assert [(each["text"], each["document"]) for each in got] == [
        ("is the capital of Switzerland", "b"),
        ("Aare is 288 km long", "a"),
        ("North", "a"),
    ]
    assert all(text[each["start"] : each["end"]] == each["text"] for each in got)  # type: ignore[misc]
    places: list[Any] = [(each["document_start"], each["document_end"]) for each in got]
    texts = (second.text, first.text, first.text)
    assert [text[start:end] for text, (start, end) in zip(texts, places, strict=True)] == [
        "is the capital of Switzerland",
        "Aare is 288 km long",
        "north",
    ]
    assert cited("Yes, it is.", [second]) == []
    assert cited("", [first]) == []


def test_citations_are_those_of_comparing_every_sentence() -> None:
    random = Random(0)
    for _ in range(40):
        texts = [". ".join(" ".join(random.choices("abcd", k=random.randint(1, 7))) for _ in range(4)) for _ in "123"]
        expected = []
        for sentence in texts[0].split(". "):
            longest, parts = "", [part for text in texts[1:] for part in text.split(". ")]
            words = sentence.split()
            for size in range(len(words), min(3, len(words)) - 1, -1):
                runs = [" ".join(words[n : n + size]) for n in range(len(words) - size + 1)]
                longest = longest or next((run for part in parts for run in runs if run in part), "")
            expected += [longest] if longest else []
        got = cited(texts[0], [Document(text, str(n)) for n, text in enumerate(texts[1:])])
        assert [len(str(each["text"])) for each in got] == [len(one) for one in expected]
        for each in got:
            place: Any = (each["document_start"], each["document_end"])
            assert texts[1 + int(str(each["document"]))][slice(*place)] == each["text"]


def test_stores_survive_a_restart_and_the_operators_is_read_only(tiny: Engine, tmp_path: Path) -> None:
    shared = tmp_path / "Manual"
    with VectorStore(LexicalEmbedder(128), shared) as store:
        store.add([Document("Press the red key.", "key", {"root": "/srv/manual", "source": "a.txt"})])
    for run in range(2):
        with (
            Tenants(
                tiny, SETTINGS, stores=tmp_path / "stores", shared=[shared], embedder=LexicalEmbedder(64)
            ) as tenants,
            served(tiny, SETTINGS, tenants=tenants) as server,
            server.http() as http,
        ):
            if run == 0:
                filled(http)
            assert [each["name"] for each in http.get("/v1/stores").json()["data"]] == ["Manual", "docs"]
            assert found(http, "dark rock", k=1) == ["rocks"]
            assert found(http, "red key", "Manual") == ["key"]
            hit = http.post("/v1/stores/Manual/search", json={"query": "key"}).json()["data"][0]
            page = http.get("/v1/stores/Manual/documents").json()["data"][0]
            assert hit["metadata"] == page["metadata"] == {"source": "a.txt"}  # no path of the server's
            about = http.get("/v1/stores/Manual").json()
            assert (about["dimensions"], about["read_only"], about["documents"]) == (128, True, 1)
            for response in (
                http.post("/v1/stores/Manual/documents", json={"documents": PAGES}),
                http.delete("/v1/stores/Manual/documents/key"),
                http.delete("/v1/stores/Manual"),
            ):
                told = error(response, 403)
                assert told["message"] == (
                    "the store 'Manual' is the operator's and only to be read; make one of your own"
                )
            if run == 0:
                with VectorStore(path=tmp_path / "stores" / "all" / "other"):
                    told = error(http.get("/v1/stores/other"), 409)
                assert told["code"] == "store_locked"
                assert http.get("/v1/stores/other").status_code == 200
                http.delete("/v1/stores/other").raise_for_status()
    assert not (tmp_path / "stores" / "all" / "other").exists()


def test_a_damaged_store(tiny: Engine, tmp_path: Path) -> None:
    for run in range(2):
        with (
            Tenants(tiny, SETTINGS, stores=tmp_path) as tenants,
            served(tiny, SETTINGS, tenants=tenants) as server,
            server.http() as http,
        ):
            if run == 0:
                filled(http)
                continue
            (tmp_path / "all" / "docs" / "passages.sqlite3").write_bytes(b"x" * 4096)
            told = error(http.get("/v1/stores/docs"), 500)
            assert (told["code"], told["message"]) == (
                "store_failed",
                "the store 'docs' cannot be used; the reason was logged",
            )
            http.delete("/v1/stores/docs").raise_for_status()
            filled(http)


def test_many_clients_write_and_search(server: Served, http: httpx.Client) -> None:
    http.post("/v1/stores", json={"name": "docs"}).raise_for_status()
    failed: list[str] = []

    def work(number: int) -> None:
        with server.http() as own:
            for n in range(4):
                pages = {"documents": [{"text": f"Rock {number} {n} is hard.", "id": f"{number}-{n}"}]}
                added = own.post("/v1/stores/docs/documents", json=pages)
                hits = own.post("/v1/stores/docs/search", json={"query": f"rock {number} {n}", "mode": "text"})
                if (added.status_code, hits.status_code) != (201, 200) or hits.json()["data"] == []:
                    failed.append(added.text + hits.text)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert http.get("/v1/stores/docs").json()["documents"] == 24
