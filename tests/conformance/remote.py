"""Fronts with `base_url`: a server of Memograft says what its engine says; other servers do what they can."""

from __future__ import annotations

import asyncio
import copy
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel

from conformance.calling import WEATHER, WEATHER_TOOL
from conformance.case import Case
from conformance.failures import every_error
from conformance.fixtures import Seen
from conformance.front import Front, Piece, user
from conformance.pages import KNOWN, OTHER, PAGE, QUESTION
from conformance.reference import answered
from conformance.sameness import AS_JSON, CASES, LOOK, WEATHER_ASKED, every_way
from conformance.servers import Servers
from gates import until
from memograft import Compacted, Engine, FastMem, ServedMemory
from memograft.errors import PromptTooLongError, RequestTimeoutError, ServerError, SettingsError
from memograft.memory.export import export
from memograft.server import InBackground, Keys, ServerSettings, add_key, create_app

__all__ = ["Remote"]


@pytest.mark.enable_socket
class Remote(Case):
    """Comparisons of a server's answers with those of its engine."""

    @pytest.fixture
    def far(self, servers: Servers, tiny: Engine) -> Front:
        """The bundled model behind a server of Memograft."""
        return self.front.at(servers.url(tiny, "tiny"), "tiny", max_tokens=32)

    @pytest.fixture
    def other(self, servers: Servers, tiny: Engine) -> Front:
        """The bundled model behind a server that is not Memograft's."""
        return self.front.at(servers.other("vllm", base=tiny), "base", max_tokens=32)

    @pytest.mark.parametrize("case", CASES)
    def test_a_server_says_what_its_engine_says(self, far: Front, tiny: Engine, case: str) -> None:
        messages, options = copy.deepcopy(CASES[case])
        if options.get("temperature", 0) > 2:
            options["temperature"] = 2.0  # a server allows no more
        expected = answered(tiny, messages, **options)
        for said in every_way(far, messages, **options):
            assert said.facts() == expected.facts()

    def test_of_a_model_that_calls_tools_by_its_own_choice(self, servers: Servers, calling: Engine) -> None:
        chat = self.front.at(servers.url(calling, "calling"), "calling", memory=None, max_tokens=60)
        for messages, options in (
            (user(WEATHER), {"tools": [WEATHER_TOOL]}),
            (WEATHER_ASKED, {"tools": [WEATHER_TOOL]}),
            (user(WEATHER), {"tools": [WEATHER_TOOL], "tool_choice": "any"}),
            (user("Hello"), {"tools": [WEATHER_TOOL], "tool_choice": "none"}),
        ):
            expected = answered(calling, messages, memory=None, **{"max_tokens": 60, **options})
            for said in every_way(chat, messages, **options):
                assert said.facts() == expected.facts()

    def test_settings_of_a_memory(self, far: Front, tiny: Engine) -> None:
        for memory in (FastMem(steps=2, rank=4), Compacted(FastMem(steps=3), ratio=2), Compacted(ratio=1)):
            expected = answered(tiny, user(QUESTION), documents=[PAGE], memory=memory)
            assert far.ask(user(QUESTION), documents=[PAGE], memory=memory).facts() == expected.facts()

    def test_a_memory_of_the_server(self, far: Front) -> None:
        memory = far.memorize([PAGE])
        assert far.memorize([PAGE]).id == memory.id
        for given in (memory, memory.id):
            for said in every_way(far, user(QUESTION), memory=given):
                assert (said.text, said.report["reused"], said.report["steps"]) == (PAGE, True, 0)
                assert said.usage["cached"] > 5
        assert far.text(QUESTION) == KNOWN
        with pytest.raises(SettingsError, match="there is no memory 'mem_nothing'"):
            far.text(QUESTION, memory="mem_nothing")

    def test_chains_of_the_framework(self, far: Front, other: Front, tiny: Engine) -> None:
        assert far.retrieve(QUESTION, [PAGE]) == PAGE
        expected = answered(tiny, user(QUESTION), documents=[PAGE], memory=None)
        assert other.retrieve(QUESTION, [PAGE]) == expected.text

    def test_closing_a_stream_frees_the_servers_row(self, servers: Servers, random_engine: Engine) -> None:
        chat = self.front.at(servers.url(random_engine, "random"), "random", memory=None, max_tokens=900)
        stream = chat.stream(user("Who?"))
        next(stream)
        assert random_engine.load.running == 1
        stream.close()  # type: ignore[attr-defined]
        until(lambda: random_engine.load.running == 0)

        async def cancelled() -> None:
            task = asyncio.create_task(chat.aask(user("Who?")))
            while not random_engine.load.running:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(cancelled())
        until(lambda: random_engine.load.running == 0)
        for error in every_error(chat, timeout=1e-4):
            assert isinstance(error, RequestTimeoutError)

    def test_many_at_once_are_decoded_together(self, far: Front, seen: Seen) -> None:
        async def gathered() -> list[Any]:
            return await asyncio.gather(*(far.aask(user(QUESTION), documents=[PAGE]) for _ in range(12)))

        assert [said.text for said in asyncio.run(gathered())] == [PAGE] * 12
        assert len(seen.batches) < 12

    def test_errors_of_the_server(self, far: Front, servers: Servers, tiny: Engine) -> None:
        url = servers.url(tiny, "tiny")
        with pytest.raises(ServerError, match="has no model 'tinny'; it has 'tiny'") as caught:
            self.front.at(url, "tinny").text(QUESTION)
        assert caught.value.status == 404
        with pytest.raises(PromptTooLongError, match="tokens, and 480 fit") as long:
            far.text("word " * 600)
        assert long.value.tokens > long.value.limit == 480
        with pytest.raises(SettingsError, match="`max_tokens` may be 512 for this model, got 10000"):
            far.text(QUESTION, max_tokens=10_000)
        with pytest.raises(SettingsError, match=r"`memory\.fastmem\.adapter`: extra inputs are not permitted"):
            far.text(QUESTION, documents=[PAGE], memory=FastMem(adapter="full"))

    def test_keys(self, tiny: Engine, tmp_path: Path) -> None:
        key = add_key(tmp_path / "keys.json", "alice")
        app = create_app(tiny, ServerSettings(model="tiny"), keys=Keys(tmp_path / "keys.json"))
        with InBackground(app) as server:
            assert self.front.at(f"{server.url}/v1", "tiny", api_key=key).text(QUESTION) == KNOWN
            for wrong in ({}, {"api_key": "mk-no"}):
                front = self.front.at(f"{server.url}/v1", "tiny", **wrong)
                with pytest.raises(ServerError) as caught:
                    front.text(QUESTION)
                assert caught.value.status == 401
                assert "mk-no" not in str(caught.value)

    def test_a_server_that_has_gone(self, tiny: Engine) -> None:
        with InBackground(create_app(tiny, ServerSettings(model="tiny"))) as server:
            chat = self.front.at(f"{server.url}/v1", "tiny")
            assert chat.text(QUESTION) == KNOWN
        for error in every_error(chat):
            assert isinstance(error, ServerError)
            assert error.status is None
            assert "cannot be reached" in str(error)
        with pytest.raises(ServerError, match=r"cannot be reached .*; check `base_url`, and that it runs: `memo"):
            self.front.at(f"{server.url}/v1", "tiny").text(QUESTION)

    @pytest.mark.parametrize(
        ("given", "match"),
        [
            ({"bank": "folder"}, "`bank` cannot be given with `base_url`, got 'folder'; start the server with `--bank"),
            (
                {"datastore": "folder"},
                "`datastore` cannot be given with `base_url`, got 'folder'; a server has no data",
            ),
            ({"model_kwargs": {"dtype": "auto"}}, "`model_kwargs` cannot be given with `base_url`, got {'dtype'"),
            ({"memory": 3}, r"`memory` with `base_url` must be .*, got 3; memorize the documents on the server"),
            ({"engine": None}, "`memory` with `base_url` must be .*, got a memory of this process; memorize"),
        ],
    )
    def test_what_only_this_process_has(self, tiny: Engine, given: dict[str, Any], match: str) -> None:
        if "engine" in given:
            given = {"memory": tiny.memorize([PAGE])}
        with pytest.raises(ValueError, match=match):
            self.front.at("http://localhost:1/v1", "tiny", **given)

    def test_an_engine_beside_a_server(self, tiny: Engine, far: Front) -> None:
        with pytest.raises(ValueError, match=r"`engine` cannot be given with `base_url`, got <.*; leave out one"):
            self.front.over(tiny, base_url="http://localhost:1/v1")
        for error in every_error(far, datastore="folder"):
            assert "`datastore` cannot be given with `base_url`" in str(error)
        with pytest.raises(SettingsError, match="`build_datastore` needs a model in this process, got base_url='http"):
            far.build_datastore([("Who?", "Me.")])
        with pytest.raises(SettingsError, match="`memory` is the memory 'mem' of a server, which this process"):
            tiny.answer(QUESTION, memory=ServedMemory("mem"))

    def test_another_server_reads_what_the_engine_would_read(self, other: Front, tiny: Engine, seen: Seen) -> None:
        expected = answered(tiny, user(QUESTION), documents=[PAGE, OTHER], memory=None)
        prompt = seen.prompt
        for said in every_way(other, user(QUESTION), documents=[PAGE, OTHER]):
            assert (said.text, said.usage, said.finish_reason) == (expected.text, expected.usage, "stop")
            assert said.report["documents"] == expected.report["documents"]
            assert said.report["memorized"] == []
            assert "memorizes nothing for a request" in said.report["reason"]
            assert seen.prompt == prompt
        options = {"temperature": 1.5, "seed": 3, "top_k": 40, "stop": [" Canb"], "logprobs": 2}
        expected = answered(tiny, user(QUESTION), memory=None, **options)
        for said in every_way(other, user(QUESTION), memory=None, **options):
            assert (said.text, said.facts()["logprobs"]) == (expected.text, expected.facts()["logprobs"])
            assert said.report["reason"] is None

    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # read by PEFT
    def test_an_exported_memory_of_another_server(self, servers: Servers, tiny: Engine, tmp_path: Path) -> None:
        handle = tiny.memorize([PAGE], FastMem())
        handle.save(tmp_path / "memory")
        made = export(tmp_path / "memory", tmp_path / "out")
        model = PeftModel.from_pretrained(copy.deepcopy(tiny.model), made.folder)
        with Engine(model.merge_and_unload(), tiny.tokenizer) as merged:
            url = servers.other("adapters", base=tiny, prices=merged)
            by_model = self.front.at(url, "prices", max_tokens=32)
            by_memory = self.front.at(url, "base", memory="prices", max_tokens=32)
            for chat in (by_model, by_memory):
                for said in every_way(chat, user(QUESTION), documents=[PAGE]):
                    assert said.text == PAGE
            assert by_memory.ask(user(QUESTION), documents=[PAGE]).report["memory_id"] == "prices"
            assert answered(tiny, user(QUESTION), documents=[PAGE], memory=None).text != PAGE

    def test_what_another_server_cannot_do(self, other: Front, servers: Servers, tiny: Engine) -> None:
        for memory in (FastMem(steps=2), Compacted(ratio=2)):
            for error in every_error(other, documents=[PAGE], memory=memory):
                assert isinstance(error, SettingsError)
                assert f"got {type(memory).__name__}: this server is not Memograft's, and cannot mem" in str(error)
        with pytest.raises(SettingsError, match="is not Memograft's, and cannot memorize documents; export memories"):
            other.memorize([PAGE])
        with pytest.raises(SettingsError, match="`overflow` must be \"error\", got 'drop': this server is not Memo"):
            other.text(QUESTION, documents=[PAGE], overflow="drop")
        with pytest.raises(SettingsError, match="The model `nobody` does not exist"):
            other.text(QUESTION, memory="nobody")
        with pytest.raises(SettingsError, match="maximum context length is 512 tokens"):
            other.text("word " * 600)

    def test_tools_and_schemas_of_another_server(self, servers: Servers, calling: Engine, other: Front) -> None:
        chat = self.front.at(servers.other("tools", base=calling), "base", memory=None, max_tokens=60)
        tools: dict[str, Any] = {"tools": [WEATHER_TOOL], "max_tokens": 60}
        for messages in (user(WEATHER), WEATHER_ASKED):
            expected = answered(calling, messages, memory=None, **tools)
            for said in every_way(chat, messages, **tools):
                assert (said.text, said.calls, said.finish_reason) == (
                    expected.text,
                    expected.calls,
                    expected.finish_reason,
                )
        assert answered(calling, user(WEATHER), memory=None, **tools).calls
        for said in every_way(other, user(QUESTION), tools=[LOOK], tool_choice="look", max_tokens=60):
            ((name, arguments),) = said.calls
            assert (name, type(arguments["a"])) == ("look", bool)
        for said in every_way(other, user(QUESTION), response_format=AS_JSON):
            assert said.text in ('{"a":true}', '{"a":false}', '{"a": true}', '{"a": false}')

    def test_a_stream_is_pieces(self, far: Front, other: Front) -> None:
        for chat in (far, other):
            pieces: list[Piece] = list(chat.stream(user(QUESTION)))
            assert len([piece for piece in pieces if piece]) > 4
