"""A real server on loopback in a thread, and its clients."""

from __future__ import annotations

from typing import Any

import httpx
import openai

from memograft import Engine
from memograft.server import InBackground, ServerSettings, create_app


class Served(InBackground):
    """A running server."""

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(**{"base_url": f"{self.url}/v1", "api_key": "unused", "max_retries": 0, **options})

    def async_client(self, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(**{"base_url": f"{self.url}/v1", "api_key": "unused", "max_retries": 0, **options})

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)


def served(engine: Engine, settings: ServerSettings | None = None, **options: Any) -> Served:
    """Serve an engine; `options` are those of `create_app`."""
    return Served(create_app(engine, settings or ServerSettings(model="tiny", timeout=60), **options))
