"""A server with OpenAI's protocol for an engine (extra `serve`).

    client ──> uvicorn ──> Journal ──> Guard ──────────────────> route ──> engine
               headers     logs and    host, key, body           a request model, admission,
               in time     metrics     (size, time)              then rows; gone clients cancel theirs

`create_app` makes the application of an engine, and `InBackground`, or `serve` at an
address that `bound` has taken, runs it.
"""

from __future__ import annotations

from memograft.errors import MissingExtraError

try:
    from memograft.server.app import create_app
    from memograft.server.keys import Keys, add_key
    from memograft.server.run import InBackground, bound, serve
    from memograft.server.settings import ServerSettings
    from memograft.server.tenants import Tenants
except ModuleNotFoundError as error:
    raise MissingExtraError(
        f"memograft.server needs {error.name}, which is not installed; run pip install 'memograft[serve]'"
    ) from error

__all__ = ["InBackground", "Keys", "ServerSettings", "Tenants", "add_key", "bound", "create_app", "serve"]
