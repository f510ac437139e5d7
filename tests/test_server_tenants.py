"""Tenants: nothing of one key's holder can be seen, used, changed or guessed by another one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from memograft import Bank, Engine, FastMem, LexicalEmbedder, Request, VectorStore
from memograft.errors import SettingsError
from memograft.memory.compact.memory import Compacted, Kept
from memograft.server import Keys, ServerSettings, Tenants, add_key, create_app
from served import Served, served

QUESTION = "What is the capital of Australia?"
ASKED: Any = [{"role": "user", "content": QUESTION}]
LISBON = "The capital of Australia is Lisbon."
PAGE = {"text": LISBON, "id": "page"}
SETTINGS = ServerSettings(model="tiny", memory=FastMem(), timeout=60, max_memories=2, max_stores=1)


@dataclass
class Holder:
    """A client with a key."""

    server: Served
    key: str

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        with self.server.http(headers={"Authorization": f"Bearer {self.key}"}) as http:
            return http.request(method, path, **options)

    def chat(self, **extra: Any) -> Any:
        with self.server.client(api_key=self.key) as client:
            return client.chat.completions.create(model="tiny", messages=ASKED, extra_body=extra)

    def memory(self, text: str = LISBON) -> str:
        made = self.ask("POST", "/v1/memories", json={"documents": [{"text": text}]})
        assert made.status_code == 201, made.text  # so it was made now, and not found
        return str(made.json()["id"])


@pytest.fixture(params=["memory", "folder"])
def holders(tiny: Engine, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Holder, Holder]]:
    file, folders = tmp_path / "keys.json", {}
    keys = [add_key(file, name) for name in ("alice", "Alice")]  # one folder on some file systems
    if request.param == "folder":
        folders = {"bank": tmp_path / "bank", "stores": tmp_path / "stores"}
    with (
        Tenants(tiny, SETTINGS, **folders, embedder=LexicalEmbedder(64)) as tenants,
        served(tiny, SETTINGS, keys=Keys(file), tenants=tenants) as server,
    ):
        yield Holder(server, keys[0]), Holder(server, keys[1])


def told(response: httpx.Response, *names: str) -> tuple[int, str]:
    """Status and body, without the names that were asked for."""
    text = response.text
    for name in names:
        text = text.replace(name, "NAME")
    return response.status_code, text


def test_memories_of_two_tenants_with_the_same_documents(holders: tuple[Holder, Holder]) -> None:
    alice, bob = holders
    mine, theirs = alice.memory(), bob.memory()
    assert mine != theirs
    for holder, own, other in ((alice, mine, theirs), (bob, theirs, mine)):
        assert [each["id"] for each in holder.ask("GET", "/v1/memories").json()["data"]] == [own]
        said = holder.chat(memory=own)
        assert (said.choices[0].message.content, said.memograft["memory_id"]) == (LISBON, own)
        missing = "mem_" + "0" * 32
        for method, path in (
            ("GET", "/v1/memories/{}"),
            ("DELETE", "/v1/memories/{}"),
            ("POST", "/v1/memories/{}/pin"),
            ("POST", "/v1/memories/{}/unpin"),
        ):
            foreign = holder.ask(method, path.format(other))
            assert foreign.status_code == 404
            assert told(foreign, other) == told(holder.ask(method, path.format(missing)), missing)
        for body in ({"memory": other}, {"memory": {"id": other}}):
            with pytest.raises(openai.NotFoundError, match="there is no memory"):
                holder.chat(**body)
        foreign = holder.ask("POST", "/v1/memories", json={"id": other})
        assert told(foreign, other) == told(holder.ask("POST", "/v1/memories", json={"id": missing}), missing)
    assert alice.ask("DELETE", f"/v1/memories/{mine}").status_code == 200
    assert bob.chat(memory=theirs).choices[0].message.content == LISBON
    assert alice.ask("GET", "/v1/memories").json()["data"] == []


def test_limits_are_each_tenants_own(holders: tuple[Holder, Holder]) -> None:
    alice, bob = holders
    kept = bob.memory("Slate is a rock.")
    for n in range(4):
        alice.memory(f"Rock {n} is hard.")
    assert len(alice.ask("GET", "/v1/memories").json()["data"]) == 2
    assert [each["id"] for each in bob.ask("GET", "/v1/memories").json()["data"]] == [kept]


def test_stores_of_two_tenants_with_the_same_name(holders: tuple[Holder, Holder]) -> None:
    alice, bob = holders
    assert alice.ask("POST", "/v1/stores", json={"name": "docs"}).status_code == 201
    assert alice.ask("POST", "/v1/stores/docs/documents", json={"documents": [PAGE]}).status_code == 201
    assert bob.ask("GET", "/v1/stores").json()["data"] == []
    for method, path, body in (
        ("GET", "/v1/stores/{}", None),
        ("DELETE", "/v1/stores/{}", None),
        ("GET", "/v1/stores/{}/documents", None),
        ("POST", "/v1/stores/{}/documents", {"documents": [PAGE]}),
        ("DELETE", "/v1/stores/{}/documents/page", None),
        ("POST", "/v1/stores/{}/search", {"query": QUESTION}),
        ("POST", "/v1/chat/completions", {"model": "tiny", "messages": ASKED, "store": {"name": "{}"}}),
    ):
        both = []
        for name in ("docs", "none"):
            sent = body if body is None or "store" not in body else {**body, "store": {"name": name}}
            both.append(told(bob.ask(method, path.format(name), json=sent), name))
        assert both[0] == both[1]
        assert both[0][0] == 404
    assert bob.ask("POST", "/v1/stores", json={"name": "docs"}).status_code == 201
    assert bob.ask("POST", "/v1/stores/docs/search", json={"query": QUESTION}).json()["data"] == []
    assert bob.chat(store={"name": "docs"}).memograft["retrieved"] == []
    assert [each["id"] for each in alice.chat(store={"name": "docs"}).memograft["retrieved"]] == ["page"]
    assert bob.ask("DELETE", "/v1/stores/docs").status_code == 200
    assert alice.ask("GET", "/v1/stores/docs").json()["documents"] == 1


@pytest.mark.parametrize("holders", ["folder"], indirect=True)
def test_what_a_tenant_asked_makes_nothing_faster_for_another(holders: tuple[Holder, Holder], tmp_path: Path) -> None:
    alice, bob = holders
    first, again, other = alice.chat(documents=[PAGE]), alice.chat(documents=[PAGE]), bob.chat(documents=[PAGE])
    assert (first.memograft["reused"], again.memograft["reused"], other.memograft["reused"]) == (False, True, False)
    cached = [said.usage.prompt_tokens_details.cached_tokens for said in (first, again, other)]
    assert cached[0] == cached[2] == 0 < cached[1]
    assert other.memograft["steps"] == first.memograft["steps"] > 0
    assert len({said.choices[0].message.content for said in (first, again, other)}) == 1
    homes = sorted(path.name for path in (tmp_path / "bank").iterdir())
    assert [name[:6] for name in homes] == ["alice-"] * 2
    assert len({(tmp_path / "bank" / name / "secret").read_bytes() for name in homes}) == 2


@pytest.mark.parametrize(
    "memory", [None, FastMem(), Kept(), Compacted(ratio=2)], ids=lambda memory: type(memory).__name__
)
def test_requests_in_one_batch_share_no_bank(tiny: Engine, memory: Any) -> None:
    """Also those that are prepared together with equal documents."""
    banks = [Bank(), Bank()]
    requests = [Request(QUESTION, documents=[LISBON], memory=memory, bank=bank) for bank in banks]
    alone = tiny.answer(QUESTION, [LISBON], memory=memory)
    for count in (1, 2):
        answers = tiny.answer_batch(requests)
        assert [answer.text for answer in answers] == [alone.text] * 2
        for bank, answer in zip(banks, answers, strict=True):
            assert (answer.usage.cached_tokens > 0) == (count == 2)
            assert bank.statistics.prefix_bytes + bank.statistics.held_bytes > 0
    none = tiny.answer(QUESTION, [LISBON], memory=memory)
    assert none.usage.cached_tokens == 0
    with pytest.raises(SettingsError, match=r"`bank` of a request must be a memograft\.Bank or None, got 'x'"):
        tiny.answer(QUESTION, bank="x")


def test_tenants_at_the_same_time(holders: tuple[Holder, Holder]) -> None:
    """Many requests of both, decoded together: each gets the documents, the memory and the store of its own."""
    alice, bob = holders
    towns = {"Lisbon": alice, "Canberra": bob}
    ids = {town: holder.memory(f"The capital of Australia is {town}.") for town, holder in towns.items()}
    for town, holder in towns.items():
        holder.ask("POST", "/v1/stores", json={"name": "docs"}).raise_for_status()
        page = {"text": f"The capital of Australia is {town}.", "id": town}
        holder.ask("POST", "/v1/stores/docs/documents", json={"documents": [page]}).raise_for_status()
    wrong: list[str] = []

    def work(town: str, how: dict[str, Any]) -> None:
        said = towns[town].chat(**how)
        if said.choices[0].message.content != f"The capital of Australia is {town}.":
            wrong.append(f"{town}: {said.choices[0].message.content}")
        if how.get("store") and [each["id"] for each in said.memograft["retrieved"]] != [town]:
            wrong.append(f"{town}: {said.memograft['retrieved']}")

    threads = [
        threading.Thread(target=work, args=(town, how))
        for town in towns
        for how in (
            {"memory": ids[town]},
            {"store": {"name": "docs"}},
            {"documents": [{"text": f"The capital of Australia is {town}."}]},
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_engine_with_a_bank_is_not_shared_by_keys(make_engine: Any, tmp_path: Path) -> None:
    add_key(tmp_path / "keys.json", "alice")
    with pytest.raises(
        SettingsError, match=r"with keys each tenant has a bank of its own, but the engine has Bank\(\)"
    ):
        create_app(make_engine(bank=Bank()), keys=Keys(tmp_path / "keys.json"))
    create_app(make_engine(bank=Bank()))


def test_shared_stores_of_one_name(tiny: Engine, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        with VectorStore(path=tmp_path / folder / "docs") as store:
            store.add(["Slate."])
    with pytest.raises(SettingsError, match=r"two stores are named 'docs', the second is .*; rename its folder"):
        Tenants(tiny, SETTINGS, shared=[tmp_path / "a" / "docs", tmp_path / "b" / "docs"])
