"""What the workers of the tests' cluster do besides their work: they die in the middle of it, or tell who they are."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response

from memograft import FastMem
from memograft.cluster import ServerOf
from memograft.memory.base import Brought, Model, Task, Wanted
from memograft.model.kv import Prefill


class Fatal(FastMem):
    """FastMem whose worker is killed once, in the middle of a batch, at a document whose metadata names a file."""

    @classmethod
    def prepare(cls, model: Model, rows: Sequence[Wanted], filled: Prefill, task: Task) -> list[Brought]:
        for n, row in enumerate(rows):
            marker = row.documents[0].metadata.get("kill")
            if marker and first_at(str(marker)):
                super().prepare(model, rows[:n], filled, task)  # these are in the bank
                os.kill(os.getpid(), signal.SIGKILL)
        return super().prepare(model, rows, filled, task)


def first_at(marker: str) -> bool:
    """Whether nobody was here before; also across processes."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


@dataclass(frozen=True)
class Named(ServerOf):
    """A server whose responses tell which process they are of."""

    def app(self) -> FastAPI:
        app = super().app()

        @app.middleware("http")
        async def named(http: Request, call: Any) -> Response:
            response: Response = await call(http)
            response.headers["x-process"] = str(os.getpid())
            return response

        return app
