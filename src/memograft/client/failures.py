"""Errors of a server, and of the way to it -> Memograft's errors, where possible those that an engine would raise."""

from __future__ import annotations

from collections.abc import Mapping

import httpx
import openai

from memograft.errors import MemograftError, PromptTooLongError, RequestTimeoutError, ServerError, SettingsError

__all__ = ["failure"]


def failure(error: Exception, url: str) -> Exception:
    """The error to raise for one of the client's; others are returned as they are.

    status 401, 403, 429, 500 and above, no response    ServerError
    code context_length_exceeded                        PromptTooLongError
    code request_timeout, status 408, 504               RequestTimeoutError
    code model_not_found                                ServerError with status 404
    other status of 400 to 499                          SettingsError
    """
    if isinstance(error, MemograftError):
        return error
    if isinstance(error, openai.APITimeoutError):
        return ServerError(f"the server at {url} did not accept a connection in time; check that it runs there")
    if isinstance(error, openai.APIStatusError):
        return _refused(error, error.status_code, url)
    if isinstance(error, openai.APIError) and isinstance(error.body, Mapping):  # in a stream
        return _refused(error, None, url)
    if isinstance(error, openai.APIConnectionError):
        why = error.__cause__ or error
        return ServerError(
            f"the server at {url} cannot be reached ({why}); check `base_url`, and that it runs: `memograft serve`"
        )
    if isinstance(error, openai.APIError | httpx.HTTPError | LookupError):
        said = f"{type(error).__name__} {error}".strip()
        return ServerError(f"the answer of the server at {url} broke off, or is in another form ({said}); ask again")
    return error


def _refused(error: openai.APIError, status: int | None, url: str) -> Exception:
    """The error for one that the server tells; in a stream it has no status."""
    about = error.body if isinstance(error.body, Mapping) else {}
    said, code = str(about.get("message") or error.message), about.get("code")
    if code == "context_length_exceeded":
        return PromptTooLongError(said, tokens=_whole(about.get("tokens")), limit=_whole(about.get("limit")))
    if code == "request_timeout" or status in (408, 504):
        return RequestTimeoutError(said)
    if status is not None and 400 <= status < 500 and status not in (401, 403, 429) and code != "model_not_found":
        return SettingsError(said)
    return ServerError(f"the server at {url} answers: {said}", status=status)


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0
