"""What a request must pass before its route: the host's name, a key, a body that is small enough and comes in time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memograft.server.errors import ApiError
from memograft.server.journal import facts_of
from memograft.server.keys import Key, Keys
from memograft.server.settings import ServerSettings
from memograft.server.web_page import PAGE_PATHS

__all__ = ["LOOPBACK", "Guard"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_OPEN = ("/health", "/ready", "/openapi.json", *PAGE_PATHS)
_OPERATORS = ("/metrics",)
_UPLOADS = re.compile(r"/v1/stores/[^/]+/documents")


class Guard:
    """Refuses requests before their bodies are read as JSON, and then passes the whole body on.

    Args:
        app: the application.
        settings: its limits.
        keys: None: no key is asked for.
        hosts: names by which clients may address the server; None: any. Without keys, these names keep web pages that
            a user of this machine has open from using the server by a name of their own (DNS rebinding).
    """

    def __init__(
        self, app: ASGIApp, settings: ServerSettings, keys: Keys | None, hosts: Collection[str] | None
    ) -> None:
        self._app, self._settings, self._keys, self._hosts = app, settings, keys, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            if self._keys is not None and scope["path"] not in _OPEN:
                facts_of(scope).key = self._holder(self._keys, headers, scope["path"]).name
            body = await self._body(headers, receive, self._most(scope["path"]))
        except ApiError as error:
            facts_of(scope).error = error.code or error.type
            if error.status != 401:
                error.headers["Connection"] = "close"  # the rest of the body is not read
            await error.response()(scope, receive, send)
            return
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)

    def _check_host(self, headers: Headers) -> None:
        if self._hosts is None:
            return
        host = headers.get("host", "")
        name = host[1 : host.find("]")] if host.startswith("[") else host.rpartition(":")[0] or host
        if name.lower() not in self._hosts:
            raise ApiError(
                421,
                f"this server has no keys and answers only as {', '.join(self._hosts)}, got the host {host!r:.80}; use "
                "one of these names, or start it with keys",
                code="wrong_host",
            )

    def _holder(self, keys: Keys, headers: Headers, path: str) -> Key:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        found = keys.find(key.strip()) if scheme.lower() == "bearer" else None
        if found is None:
            said = "is not a key of this server" if key else "is missing"
            raise ApiError(
                401,
                f"the key {said}; pass one that `memograft keys add` made, as `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if path in _OPERATORS and not found.operator:
            raise ApiError(
                403,
                f"metrics tell about all keys' requests, and the key {found.name!r} is not an operator's; use one made "
                "with `memograft keys add --operator`",
                type="permission_error",
                code="not_an_operator",
            )
        return found

    def _most(self, path: str) -> int:
        """Bytes that a body may have."""
        return self._settings.max_upload if _UPLOADS.fullmatch(path) else self._settings.max_body

    async def _body(self, headers: Headers, receive: Receive, most: int) -> bytes:
        body = bytearray()
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > most:
            raise self._too_large(f"{int(length)} bytes", most)
        try:
            async with asyncio.timeout(self._settings.read_timeout):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise ApiError(400, "the connection ended before the body did; send the request again")
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise self._too_large("more", most)
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError as error:
            raise ApiError(
                408,
                f"a request's body must come within {self._settings.read_timeout:g} seconds, got {len(body)} bytes of "
                "it; send it faster",
                code="body_timeout",
            ) from error

    def _too_large(self, got: str, most: int) -> ApiError:
        return ApiError(
            413,
            f"a request's body may have {most} bytes, got {got}; send fewer or shorter texts",
            code="body_too_large",
        )
