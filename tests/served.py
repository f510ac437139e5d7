"""A real server on loopback in a thread, and its clients."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import uvicorn

from gates import until
from memograft import Engine
from memograft.server import ServerSettings, create_app
from memograft.server.run import make_server


@dataclass
class Served:
    """A running server.

    Attributes:
        server: uvicorn's.
        thread: in which it runs.
        port: on 127.0.0.1.
        app: the application.
    """

    server: uvicorn.Server
    thread: threading.Thread
    port: int
    app: Any

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(**{"base_url": f"{self.url}/v1", "api_key": "unused", "max_retries": 0, **options})

    def async_client(self, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(**{"base_url": f"{self.url}/v1", "api_key": "unused", "max_retries": 0, **options})

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)


@contextmanager
def served(engine: Engine, settings: ServerSettings | None = None, **options: Any) -> Iterator[Served]:
    """Serve an engine until the end of the block; `options` are those of `create_app`."""
    settings = settings or ServerSettings(model="tiny", timeout=60)
    app = create_app(engine, settings, **options)
    server = make_server(app, settings, host="127.0.0.1", port=0, logs=False)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            server.run()
        except BaseException as error:  # reported by the test's thread
            failed.append(error)

    thread = threading.Thread(target=run, name="server")
    thread.start()
    try:
        until(lambda: server.started or bool(failed))
        assert not failed, failed
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Served(server, thread, port, app)
    finally:
        server.should_exit = True
        thread.join()
    assert not failed, failed
