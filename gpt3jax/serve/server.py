"""The server: OpenAI's /v1/completions and /v1/models, a page to type at, health and metrics.

It listens on loopback unless it is told otherwise. A web page that the user
visits may send requests to loopback, too: bodies must be declared as JSON, for
which browsers ask first, and requests must name this host.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import socket
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from gpt3jax.errors import ConfigError
from gpt3jax.serve import page
from gpt3jax.serve.answers import PATIENCE, RETRY_AFTER, Answer
from gpt3jax.serve.api import LARGEST_BODY, ApiError, Served, completion
from gpt3jax.serve.batching import Owner

DRAINED = 64 << 20
"""Bytes of too large a body that are read and dropped, so that its sender reads the answer."""
BACKLOG = 2048
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
OPEN = (*page.FILES, "/health")
"""What needs no token: it tells nothing, and computes nothing."""


class Server:
    """One model behind HTTP.

    Args:
      served: the model, and the limits of a request.
      owner: who computes.
      token: what requests must carry as bearer, if anything.
      names: what requests may call this host; None: anything.
    """

    def __init__(
        self, served: Served, owner: Owner, token: str | None, names: tuple[str, ...] | None
    ) -> None:
        self._served, self._owner, self._token, self._names = served, owner, token, names
        self._created = int(time.time())
        self._answers: Counter[tuple[str, int]] = Counter()

    def app(self) -> ASGIApp:
        """The application, which starts and ends the owner's thread."""

        @asynccontextmanager
        async def lifespan(_):
            yield
            await asyncio.to_thread(self._owner.close)

        routes = [
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._models),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            *(Route(path, page.answer) for path in page.FILES),
        ]
        handlers = {ApiError: _refuse, HTTPException: _refuse_http}
        inner = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
        return self._guarded(inner)

    def _guarded(self, inner: ASGIApp) -> ASGIApp:
        """Checks before anything is read, and what is counted after."""

        async def guard(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await inner(scope, receive, send)
                return
            status = [499]

            async def counted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    status[0] = message["status"]
                await send(message)

            try:
                self._check(Request(scope))
                await inner(scope, receive, counted)
            except ApiError as error:
                await _refusal(error)(scope, receive, counted)
            except ClientDisconnect:
                pass
            known = scope["path"] if scope["path"] in COUNTED else "other"
            self._answers[known, status[0]] += 1

        return guard

    def _check(self, request: Request) -> None:
        """Who asks, and for what host.

        Raises:
          ApiError: not to be answered.
        """
        host = request.headers.get("host", "").rsplit(":", 1)
        name = host[0] if len(host) == 1 or host[1].isdigit() else ":".join(host)
        if self._names is not None and name.lower() not in self._names:
            raise ApiError(403, f"this server is {self._names[0]}, not {name[:80]!r}")
        if self._token is None or request.url.path in OPEN:
            return
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            raise ApiError(401, "the bearer token is missing or wrong", code="invalid_api_key")

    async def _completions(self, request: Request) -> Answer:
        body = await _body(request)
        asked = await asyncio.to_thread(completion, body, self._served)
        return Answer(asked, self._served, self._owner)

    async def _models(self, request: Request) -> Response:
        name = self._served.name
        model = {"id": name, "object": "model", "created": self._created, "owned_by": "gpt3jax"}
        asked = request.path_params.get("name")
        if asked not in (None, name):
            what = f"there is no model {asked[:80]!r} here: {name!r} is served"
            raise ApiError(404, what, "model", "model_not_found")
        return JSONResponse(model if asked else {"object": "list", "data": [model]})

    async def _health(self, _: Request) -> Response:
        alive, programs = self._owner.is_alive, self._owner.programs
        found = {
            "status": "ok" if alive else "ended", "compiled": programs.compiled,
            "programs": programs.total,
        }  # fmt: skip
        return JSONResponse(found, 200 if alive else 503)

    async def _metrics(self, _: Request) -> Response:
        """Prometheus' text format, version 0.0.4."""
        counts, owner = self._owner.counts, self._owner
        lines = ["# HELP gpt3jax_requests_total Answered requests (499: the client left before).",
                 "# TYPE gpt3jax_requests_total counter"]  # fmt: skip
        for (path, status), count in sorted(self._answers.items()):
            lines.append(f'gpt3jax_requests_total{{path="{path}",code="{status}"}} {count}')
        for name, kind, what, value in (
            ("prompt_tokens_total", "counter", "Tokens of prompts read", counts["prompt_tokens"]),
            ("completion_tokens_total", "counter", "Tokens written", counts["completion_tokens"]),
            ("steps_total", "counter", "Decoding steps of the device", counts["steps"]),
            ("step_rows_total", "counter", "Rows in them, summed", counts["rows"]),
            ("step_seconds_total", "counter", "Seconds in them", counts["step_seconds"]),
            ("rows_active", "gauge", "Rows being written", owner.active),
            ("rows_waiting", "gauge", "Rows in the queue", owner.waiting),
        ):
            lines.append(f"# HELP gpt3jax_{name} {what}.")
            lines.append(f"# TYPE gpt3jax_{name} {kind}")
            lines.append(f"gpt3jax_{name} {value:.10g}")
        text = "\n".join(lines) + "\n"
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


COUNTED = ("/v1/completions", "/v1/models", "/health", "/metrics", *page.FILES)
"""Paths that are counted by their names: others are a stranger's to choose."""


async def _body(request: Request) -> bytes:
    """All of a request's body.

    Raises:
      ApiError: it is not declared as JSON, too large, or does not come.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    found, length = bytearray(), 0
    try:
        async with asyncio.timeout(PATIENCE):
            async for chunk in request.stream():
                length += len(chunk)
                if length <= LARGEST_BODY:
                    found += chunk
                elif length > DRAINED:
                    break
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {PATIENCE:.0f} seconds") from None
    if length > LARGEST_BODY:
        raise ApiError(413, f"the body is over {LARGEST_BODY:,} bytes: the largest that is read")
    if kind != "application/json":
        raise ApiError(415, f"content-type is {kind[:80]!r}: it must be application/json")
    return bytes(found)


def _refusal(error: ApiError) -> Response:
    headers = {429: {"retry-after": RETRY_AFTER}, 401: {"www-authenticate": "Bearer"}}
    return JSONResponse(error.to_json(), error.status, headers.get(error.status))


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _refusal(error)


async def _refuse_http(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path[:80]}: {error.detail.lower()}"
    return JSONResponse(
        ApiError(error.status_code, what).to_json(), error.status_code, error.headers
    )


class _Protocol(H11Protocol):
    """HTTP, but who connects and then does not ask is let go."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)

        def let_go() -> None:
            if self.cycle is None:
                transport.close()

        self._letting_go = self.loop.call_later(PATIENCE, let_go)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # Or the event loop would hold what the connection was, and what it read, until then.
        self._letting_go.cancel()


def is_loopback(host: str) -> bool:
    """Whether nobody beyond this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound.

    Raises:
      ConfigError: it cannot be.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise ConfigError(
            f"--host {host} --port {port} cannot be listened on: {error.strerror}. Choose another"
        ) from error
    return bound


def make_server(
    served: Served, owner: Owner, bound: socket.socket, token: str | None
) -> uvicorn.Server:
    """What `run(sockets=[bound])` starts; it ends the owner's thread, too.

    Args:
      served: the model.
      owner: who computes.
      bound: where to listen.
      token: what requests must carry, if anything.
    """
    names = LOOPBACK_NAMES if is_loopback(bound.getsockname()[0]) else None
    config = uvicorn.Config(
        Server(served, owner, token, names).app(), http=_Protocol, ws="none", loop="asyncio",
        lifespan="on", access_log=False, log_level="error", server_header=False,
        proxy_headers=False, backlog=BACKLOG, timeout_graceful_shutdown=2,
    )  # fmt: skip
    return uvicorn.Server(config)


def address_of(bound: socket.socket) -> str:
    """A socket's address, to be typed into a browser."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def warn_of_strangers(host: str, token: str | None) -> None:
    """Say it where others can reach the server."""
    if not is_loopback(host):
        who = "with the token" if token else "WITHOUT A TOKEN: --token-file asks for one"
        print(f"warning: whoever reaches {host} may use this model, {who}", file=sys.stderr)
