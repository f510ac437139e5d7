"""Keys: who may use a server, what is stored of a key, and servers without keys."""

from __future__ import annotations

import hashlib
import json
import re
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from typer.testing import CliRunner

from memograft import Engine
from memograft.cli.app import app
from memograft.errors import SettingsError
from memograft.server import Keys, ServerSettings, add_key
from memograft.server.keys import read_keys, remove_key
from memograft.server.run import bound, check_host
from served import Served, served

ASKED: Any = [{"role": "user", "content": "Who?"}]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def run(*args: object, code: int = 0) -> Any:
    done = CliRunner(env={"COLUMNS": "140"}).invoke(app, [str(a) for a in args])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def test_a_key_is_found_and_only_its_hash_is_stored(file: Path) -> None:
    key, other = add_key(file, "alice"), add_key(file, "bob", operator=True)
    assert key != other
    assert len(key) == len("mg-") + 43  # 256 bits
    text = file.read_text()
    assert key not in text
    assert hashlib.sha256(key.encode()).hexdigest() in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    keys = Keys(file)
    alice, bob = keys.find(key), keys.find(other)
    assert alice is not None
    assert bob is not None
    assert [(k.name, k.operator) for k in (alice, bob)] == [("alice", False), ("bob", True)]
    for wrong in ("", "mg-", key[:-1], key + "a", key.upper(), hashlib.sha256(key.encode()).hexdigest(), "\ud800"):
        assert keys.find(wrong) is None


def test_a_removed_key_is_refused_by_what_runs(file: Path) -> None:
    key, other = add_key(file, "alice"), add_key(file, "bob")
    keys = Keys(file)
    remove_key(file, "alice")
    assert keys.find(key) is None
    assert keys.find(other) is not None
    file.write_text("{")  # damaged: what was read last stays
    assert keys.find(other) is not None


def test_keys_that_are_added_at_the_same_time(file: Path) -> None:
    threads = [threading.Thread(target=add_key, args=(file, f"k{n}")) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key.name for key in read_keys(file)) == [f"k{n}" for n in range(8)]


def test_what_is_refused(file: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot be read .*; make it: memograft keys add"):
        Keys(file)
    with pytest.raises(SettingsError, match=r"a key's name must be up to 64 letters, .*, got 'a b'"):
        add_key(file, "a b")
    add_key(file, "alice")
    with pytest.raises(SettingsError, match="has a key named 'alice' already"):
        add_key(file, "alice")
    with pytest.raises(SettingsError, match="has no key 'bob'; its keys are alice"):
        remove_key(file, "bob")
    remove_key(file, "alice")
    with pytest.raises(SettingsError, match="has no keys, so nobody could use the server"):
        Keys(file)
    for text in ("{", "[]", '{"keys": [{"name": "a", "sha256": "12"}]}', '{"keys": [{"nam": "a"}]}', '{"keys": [1]}'):
        file.write_text(text)
        with pytest.raises(SettingsError, match="is not a file of keys"):
            read_keys(file)


def test_the_commands(file: Path) -> None:
    made = run("keys", "add", file, "alice", "--operator", "--json").stdout
    key = json.loads(made)["key"]
    assert Keys(file).find(key) is not None
    shown = run("keys", "add", file, "bob")
    assert Keys(file).find(shown.stdout.strip()) is not None
    listed = run("keys", "ls", file)
    assert "alice" in listed.stdout
    assert key not in listed.stdout
    assert [k["operator"] for k in json.loads(run("keys", "ls", file, "--json").stdout)["keys"]] == [True, False]
    run("keys", "rm", file, "alice")
    assert [k.name for k in read_keys(file)] == ["bob"]
    assert "has no key 'alice'" in run("keys", "rm", file, "alice", code=1).stderr


@pytest.fixture
def keyed(tiny: Engine, file: Path) -> Iterator[tuple[Served, str, str]]:
    key, operator = add_key(file, "alice"), add_key(file, "bob", operator=True)
    settings = ServerSettings(model="tiny", timeout=60, max_per_key=1)
    with served(tiny, settings, keys=Keys(file)) as server:
        yield server, key, operator


def test_a_server_with_keys(keyed: tuple[Served, str, str], file: Path) -> None:
    server, key, operator = keyed
    with server.client(api_key=key) as client:
        assert client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=3).usage
        with pytest.raises(openai.BadRequestError, match="a request may have 1 answers in all, got 2"):
            client.chat.completions.create(model="tiny", messages=ASKED, n=2)
    for wrong in ("nobody", key[:-1] + ("a" if key[-1] != "a" else "b")):
        with server.client(api_key=wrong) as client:
            with pytest.raises(openai.AuthenticationError, match="is not a key of this server") as caught:
                client.chat.completions.create(model="tiny", messages=ASKED)
            assert caught.value.code == "invalid_api_key"
            assert wrong not in str(caught.value)
    with server.http() as http:
        for path in ("/v1/models", "/metrics", "/nowhere"):
            response = http.get(path)
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
            assert "the key is missing" in response.json()["error"]["message"]
        assert http.get("/v1/models", headers={"Authorization": f"Basic {key}"}).status_code == 401
        assert [http.get(path).status_code for path in ("/health", "/ready", "/openapi.json")] == [200] * 3
        assert "HTTPBearer" in http.get("/openapi.json").json()["components"]["securitySchemes"]
        refused = http.get("/metrics", headers={"Authorization": f"Bearer {key}"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_an_operator")
        assert "memograft_tokens" in http.get("/metrics", headers={"Authorization": f"bearer {operator}"}).text
        remove_key(file, "alice")
        assert http.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 401
        big = http.post("/v1/completions", content=b"x" * (5 << 20))  # refused before it is read
        assert big.status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:80", "", "10.0.0.1"])
def test_a_server_without_keys_answers_only_to_local_names(tiny: Engine, host: str) -> None:
    with served(tiny) as server, server.http() as http:
        response = http.get("/v1/models", headers={"Host": host})
        assert response.status_code in (400, 421)
        if host:
            assert "this server has no keys and answers only as 127.0.0.1, localhost, ::1" in response.text
        for name in ("localhost", f"127.0.0.1:{server.port}", "[::1]:8000", "LOCALHOST:1"):
            assert http.get("/v1/models", headers={"Host": name}).status_code == 200
    with served(tiny, hosts=None) as server, server.http() as http:
        assert http.get("/v1/models", headers={"Host": "anything"}).status_code == 200


def test_strangers_need_keys() -> None:
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        check_host(host, keys=False, open_to_all=False)
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        check_host(host, keys=True, open_to_all=False)
        check_host(host, keys=False, open_to_all=True)
        with pytest.raises(SettingsError, match=r"needs keys, and .* is reachable without any; make a file with"):
            check_host(host, keys=False, open_to_all=False)
    assert "needs keys" in run("serve", "--host", "0.0.0.0", code=1).stderr


def test_an_address_that_is_taken_is_refused_before_a_model_is_loaded() -> None:
    with bound("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert (
            f"cannot listen on 127.0.0.1 port {port}" in run("serve", "--port", port, "--model", "none", code=1).stderr
        )
    with pytest.raises(SettingsError, match=r"cannot listen on 203.0.113.1 port 8000"):
        bound("203.0.113.1")


def test_the_page_is_public_and_has_nothing_inline(tiny: Engine, file: Path) -> None:
    add_key(file, "alice")
    for keys, asks in ((None, "false"), (Keys(file), "true")):
        with served(tiny, ServerSettings(model="tiny"), keys=keys) as server, server.http() as http:
            page = http.get("/")
            assert page.status_code == 200
            assert f'data-keys="{asks}"' in page.text
            policy = page.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]* src=)", page.text)
            linked = set(re.findall(r'(?:src|href)="(/web/[^"]+)"', page.text))
            assert linked == {"/web/page.css", "/web/icon.svg", "/web/page.js"}
            for path in (*linked, "/web/api.js", "/web/show.js"):
                assert http.get(path).headers["x-content-type-options"] == "nosniff"
            assert http.get("/web/other.js").status_code == (404 if keys is None else 401)
            assert http.get("/v1/models").status_code == (200 if keys is None else 401)
