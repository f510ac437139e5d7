"""Run an application with uvicorn, until the process is told to end."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from memograft.errors import SettingsError
from memograft.server.settings import ServerSettings
from memograft.storage.disk import JsonObject

__all__ = ["LOGS", "InBackground", "bound", "check_host", "serve"]

_BACKLOG = 2048  # connections that wait to be accepted, as many as uvicorn's own
LOGS: JsonObject = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "memograft.server.journal.JsonLines"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "loggers": {
        "uvicorn": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
        "memograft.server": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
    },
}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server at this address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_host(host: str, *, keys: bool, open_to_all: bool) -> None:
    """Refuse a server that others could use without a key.

    Raises:
        SettingsError: neither keys nor permission.
    """
    if not (keys or open_to_all or is_loopback(host)):
        raise SettingsError(
            f"a server that other machines can reach needs keys, and {host!r} is reachable without any; make a file "
            "with `memograft keys add FILE NAME` and pass `--keys FILE`, or serve on 127.0.0.1, or pass `--no-keys` if "
            "something else keeps strangers away"
        )


def _server(app: FastAPI, logs: JsonObject | None) -> uvicorn.Server:
    """The uvicorn server of an application of `create_app`.

    Its connections close if a request's headers do not come in time; see `ServerSettings.read_timeout`.
    """

    settings: ServerSettings = app.state.settings

    class Protocol(InTime):
        seconds = settings.read_timeout

    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=logs,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=max(5, round(settings.read_timeout)),
        timeout_graceful_shutdown=max(1, round(settings.shutdown_timeout)),
    )
    return uvicorn.Server(config)


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Serve at an address of `bound`, until SIGINT or SIGTERM.

    Then no connections are accepted, and answers in progress are finished. Each request is logged to stderr as
    one line of JSON.
    """
    with listener, _quiet_signals():
        _server(app, LOGS).run(sockets=[listener])


class InBackground:
    """Serves in a thread until `close`, for notebooks and tests. Logging is left as it is.

    Args:
        app: made by `create_app`.
        host: address to listen on.
        port: port to listen on; 0 takes one that is free.

    Raises:
        SettingsError: the address cannot be used.
    """

    def __init__(self, app: FastAPI, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._listener = bound(host, port)
        self._listener.listen(_BACKLOG)  # so that a client that connects at once is accepted soon
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
        self._server = _server(app, None)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._listener],), name="memograft server", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Take no connections any more; answers in progress are finished. Does not wait for that."""
        self._server.should_exit = True

    def close(self) -> None:
        """`stop`, and wait for the end."""
        self.stop()
        self._thread.join()
        self._listener.close()

    def __enter__(self) -> InBackground:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def bound(host: str = "127.0.0.1", port: int = 8000) -> socket.socket:
    """Take an address, before a model is loaded; connections are accepted from `serve` on.

    Raises:
        SettingsError: the address cannot be used.
    """
    taken = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, port))
    except OSError as error:
        taken.close()
        raise SettingsError(f"cannot listen on {host} port {port}: {error.strerror or error}; choose others") from error
    return taken


class InTime(H11Protocol):
    """uvicorn's HTTP, for clients that send a request's headers within `seconds` of connecting or of their last one.

    uvicorn itself waits without limit for the first request of a connection.
    """

    seconds: float

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock."""
        super().connection_made(transport)
        self.access_log = False  # even where the program's own logging turns it on: it has paths as clients write them
        self._clock: asyncio.TimerHandle | None = None
        self._set()

    def data_received(self, data: bytes) -> None:
        """Start the clock with the first bytes of a request, and stop it with the last of its headers."""
        super().data_received(data)
        self._set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        super().connection_lost(exc)
        if self._clock is not None:
            self._clock.cancel()

    def _set(self) -> None:
        waits = self.cycle is None or self.cycle.response_complete
        if waits and self._clock is None:
            self._clock = self.loop.call_later(self.seconds, self._late)
        elif not waits and self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _late(self) -> None:
        self._clock = None
        if self.cycle is None or self.cycle.response_complete:
            self.timeout_keep_alive_handler()


@contextmanager
def _quiet_signals() -> Iterator[None]:
    """Let a signal that uvicorn has obeyed, and raises again afterwards, end nothing else."""

    def obeyed(_number: int, _frame: FrameType | None) -> None:
        pass

    before = {number: signal.signal(number, obeyed) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
