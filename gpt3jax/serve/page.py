"""The web page at `/`, which streams tokens with their probabilities for a prompt.

The page consists of three self-contained files. Its content security policy only allows requests
to this server, and generated text is only ever set as text content.
"""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from gpt3jax.style import CSS


def _template(name: str) -> str:
    return (files("gpt3jax.serve") / "template" / name).read_text(encoding="utf-8")


FILES = {
    "/": ("text/html", _template("page.html")),
    "/page.js": ("text/javascript", _template("page.js")),
    "/page.css": ("text/css", f"{CSS}\n{_template('page.css')}"),
}
"""Media types and contents by path."""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


async def answer(request: Request) -> Response:
    """Respond with one of the page's files."""
    kind, content = FILES[request.url.path]
    return Response(content, media_type=kind, headers=HEADERS)
