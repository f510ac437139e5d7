"""Errors as OpenAI's API returns them: `{"error": {"message", "type", "param", "code"}}` with an HTTP status."""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import Mapping, Sequence

from starlette.responses import Response

from memograft.chat import failure_of, message_text, unknown_names
from memograft.storage.disk import JsonObject

__all__ = ["ApiError", "JsonResponse", "api_error", "of_validation", "refused", "to_json", "too_long"]

_log = logging.getLogger("memograft.server")
_SHOWN = 80  # characters of a value in an error's message
_LAST = {"x-should-retry": "false"}  # OpenAI's clients would send it again, and wait as long again


def to_json(value: object) -> bytes:
    """JSON as UTF-8; an unpaired surrogate, which UTF-8 cannot have, becomes "?"."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


class JsonResponse(Response):
    """A response with JSON; see `to_json`."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """The body."""
        return to_json(content)


class ApiError(Exception):
    """A request that is not answered.

    Attributes:
        status: HTTP status.
        message: rule, value and remedy.
        type: OpenAI's class of errors.
        param: the field that is wrong.
        code: OpenAI's name of the error.
        headers: of the response.
        facts: further values for programs: how long a prompt is, and how long it may be.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        facts: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.type, self.param, self.code = status, message, type, param, code
        self.headers, self.facts = dict(headers or {}), dict(facts or {})

    def body(self) -> dict[str, object]:
        """The response's JSON values."""
        about = {"message": self.message, "type": self.type, "param": self.param, "code": self.code, **self.facts}
        return {"error": about}

    def response(self) -> Response:
        """The response."""
        return JsonResponse(self.body(), self.status, self.headers)


def refused(param: str, message: str, code: str | None = None) -> ApiError:
    """A request with an invalid value."""
    return ApiError(400, message, param=param, code=code)


def too_long(param: str, error: BaseException, message: str) -> ApiError:
    """A request that does not fit the model's window; PromptTooLongError says by how much."""
    facts = {name: getattr(error, name) for name in ("tokens", "limit") if hasattr(error, name)}
    return ApiError(400, message, param=param, code="context_length_exceeded", facts=facts)


def api_error(error: BaseException) -> ApiError:
    """The error that tells a client of an exception.

    Exceptions that Memograft does not raise deliberately are logged without their messages, which may have texts of
    the request, and the client is told nothing else.
    """
    if isinstance(error, ApiError):
        return error
    kind, said = failure_of(error), message_text(error)
    if kind == "too long":
        return too_long("messages", error, said)
    if kind == "timeout":
        return ApiError(504, said, type="timeout_error", code="request_timeout", headers=_LAST)
    if kind in ("closed", "cancelled"):
        said = "the server is ending, so the request was not answered; send it again later"
        return ApiError(503, said, type="server_error", code="server_ending", headers={"Retry-After": "5"})
    if kind == "invalid":
        named = re.match(r"`(\w+)`", said)
        return ApiError(400, said, param=named[1] if named else None)
    place = "".join(traceback.format_tb(error.__traceback__))
    _log.error("internal error", extra={"facts": {"exception": type(error).__name__, "traceback": place}})
    said = "an error inside the server prevented the answer; it was logged there, with the id in `x-request-id`"
    return ApiError(500, said, type="server_error", code="internal_error")


def of_validation(errors: Sequence[JsonObject], about: Mapping[str, str]) -> ApiError:
    """The error of a body that does not fit its request model.

    Args:
        errors: of pydantic; the first is reported.
        about: names and descriptions of the model's fields.
    """
    first = errors[0]
    kind, path = first["type"], [str(part) for part in first["loc"][1:]]
    if kind == "json_invalid":
        return ApiError(400, f"the body must be JSON, got {first['ctx']['error']} at byte {path[0]}; encode it anew")
    if not path:
        return ApiError(400, "the body must be a JSON object with the content type application/json; send one")
    param = path[0]
    if kind == "extra_forbidden" and len(path) == 1:
        return refused(param, f"this endpoint has no {unknown_names([param], about)}", "unknown_parameter")
    if kind == "missing":
        return refused(param, f"`{'.'.join(path)}` is required, and the request has none; add it", "missing_required")
    said = first["msg"].replace("None", "null")
    said = f"`{'.'.join(path)}`: {said[:1].lower()}{said[1:]}, got {first.get('input')!r:.{_SHOWN}}"
    return refused(param, f"{said}. {about[param]}" if about.get(param) else said, "invalid_value")
