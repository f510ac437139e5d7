"""The page at `/`, whose files are in the folder `web`. It is public; its requests have the user's key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

from memograft.page import LEVELS

__all__ = ["PAGE_PATHS", "page_routes"]

_KINDS = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}
_FILES = {
    "/": "index.html",
    "/web/page.css": "page.css",
    "/web/icon.svg": "icon.svg",
    "/web/page.js": "page.js",
    "/web/api.js": "api.js",
    "/web/show.js": "show.js",
}
PAGE_PATHS = tuple(_FILES)
# Nothing but the page's own files and this server; no inline script or style, and no text that becomes HTML.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src "
    "'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # a new version of the package has new files
}


def page_routes(*, keys: bool) -> APIRouter:
    """The routes of the page.

    Args:
        keys: whether the page asks for a key before its first request.
    """
    routes = APIRouter()
    folder = files("memograft.server") / "web"
    for path, name in _FILES.items():
        text = (folder / name).read_text(encoding="utf-8")
        if name == "index.html":
            text = text.replace('data-keys=""', f'data-keys="{str(keys).lower()}"')
            text = text.replace('data-levels=""', f'data-levels="{" ".join(map(str, LEVELS))}"')
        response = Response(text, media_type=_KINDS[name.rpartition(".")[2]], headers=_HEADERS)
        routes.add_api_route(path, _giving(response), include_in_schema=False)
    return routes


def _giving(response: Response) -> Callable[[], Awaitable[Response]]:
    async def give() -> Response:
        return response

    return give
