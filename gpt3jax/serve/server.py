"""The HTTP server: OpenAI's /v1/completions and /v1/models, a web page, health and metrics.

The server listens on loopback by default. Web pages that the user visits could also send requests
to loopback. Therefore bodies must be declared as JSON, which makes browsers send a CORS preflight,
and the Host header must name this host, which prevents DNS rebinding.
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
from gpt3jax.serve.answers import PATIENCE, Answer
from gpt3jax.serve.api import LARGEST_BODY, ApiError, Served, completion
from gpt3jax.serve.batching import Owner

DRAINED = 64 << 20
"""Bytes of an oversized body that are read and dropped so that the client reads the response."""
BACKLOG = 2048
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
OPEN = (*page.FILES, "/health")
"""Paths that need no token; they reveal nothing about the model and run no computation."""


class Server:
    """Serves one model over HTTP.

    Args:
      served: the model and the limits of a request.
      owner: the thread that owns the device.
      token: the bearer token that requests must carry, if any.
      names: host names accepted in the Host header; None: any.
    """

    def __init__(
        self, served: Served, owner: Owner, token: str | None, names: tuple[str, ...] | None
    ) -> None:
        self._served, self._owner, self._token, self._names = served, owner, token, names
        self._created = int(time.time())
        self._responses: Counter[tuple[str, int]] = Counter()

    def app(self) -> ASGIApp:
        """The ASGI application; it stops the owner's thread on shutdown."""

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
        """Check each request before its body is read, and count the responses."""

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
            self._responses[known, status[0]] += 1

        return guard

    def _check(self, request: Request) -> None:
        """Check the Host header and the bearer token.

        Raises:
          ApiError: one of them is wrong.
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
        parsed = await asyncio.to_thread(completion, body, self._served)
        return Answer(parsed, self._served, self._owner)

    async def _models(self, request: Request) -> Response:
        name = self._served.name
        model = {"id": name, "object": "model", "created": self._created, "owned_by": "gpt3jax"}
        requested = request.path_params.get("name")
        if requested not in (None, name):
            message = f"there is no model {requested[:80]!r} here: {name!r} is served"
            raise ApiError(404, message, "model", "model_not_found")
        return JSONResponse(model if requested else {"object": "list", "data": [model]})

    async def _health(self, _: Request) -> Response:
        programs, status = self._owner.programs, "ok" if self._owner.is_alive else "ended"
        state = {"status": status, "compiled": programs.compiled, "programs": programs.total}
        return JSONResponse(state, 200 if status == "ok" else 503)

    async def _metrics(self, _: Request) -> Response:
        """Metrics in Prometheus' text format, version 0.0.4."""
        counts, owner = self._owner.counts, self._owner
        lines = [
            "# HELP gpt3jax_requests_total Answered requests (499: the client disconnected).",
            "# TYPE gpt3jax_requests_total counter",
        ]
        for (path, status), count in sorted(self._responses.items()):
            lines.append(f'gpt3jax_requests_total{{path="{path}",code="{status}"}} {count}')
        for name, kind, what, value in (
            ("prompt_tokens_total", "counter", "Prompt tokens", counts["prompt_tokens"]),
            ("completion_tokens_total", "counter", "New tokens", counts["completion_tokens"]),
            ("steps_total", "counter", "Decode steps", counts["steps"]),
            ("step_rows_total", "counter", "Rows in all decode steps", counts["rows"]),
            ("step_seconds_total", "counter", "Time in decode steps (s)", counts["step_seconds"]),
            ("rows_active", "gauge", "Rows being decoded", owner.active),
            ("rows_waiting", "gauge", "Rows in the queue", owner.waiting),
        ):
            lines.append(f"# HELP gpt3jax_{name} {what}.")
            lines.append(f"# TYPE gpt3jax_{name} {kind}")
            lines.append(f"gpt3jax_{name} {value:.10g}")
        text = "\n".join(lines) + "\n"
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


COUNTED = ("/v1/completions", "/v1/models", "/health", "/metrics", *page.FILES)
"""Paths with their own counters; clients could send any number of other paths."""


async def _body(request: Request) -> bytes:
    """Read a request's body.

    Raises:
      ApiError: the body is not declared as JSON, is too large, or does not arrive in time.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    body, length = bytearray(), 0
    try:
        async with asyncio.timeout(PATIENCE):
            async for chunk in request.stream():
                length += len(chunk)
                if length <= LARGEST_BODY:
                    body += chunk
                elif length > DRAINED:
                    break
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {PATIENCE:.0f} seconds") from None
    if length > LARGEST_BODY:
        raise ApiError(413, f"the body is over the limit of {LARGEST_BODY:,} bytes")
    if kind != "application/json":
        raise ApiError(415, f"content-type is {kind[:80]!r}: it must be application/json")
    return bytes(body)


def _refusal(error: ApiError) -> Response:
    headers = {429: {"retry-after": "1"}, 401: {"www-authenticate": "Bearer"}}
    return JSONResponse(error.to_json(), error.status, headers.get(error.status))


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _refusal(error)


async def _refuse_http(request: Request, error: Exception) -> Response:
    """Respond to Starlette's own errors: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:80]}: {error.detail.lower()}"
    return JSONResponse(
        ApiError(error.status_code, message).to_json(), error.status_code, error.headers
    )


class _Protocol(H11Protocol):
    """HTTP that closes connections on which no request arrives in time."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)

        def close_if_idle() -> None:
            if self.cycle is None:
                transport.close()

        self._idle_timer = self.loop.call_later(PATIENCE, close_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # The timer would otherwise keep the connection and its buffers alive until it fires.
        self._idle_timer.cancel()


def is_loopback(host: str) -> bool:
    """Whether an address can only be reached from this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """Bind a socket.

    Raises:
      ConfigError: the address cannot be bound.
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
    """A `Server` to be started with `run(sockets=[bound])`; it stops the owner when it ends."""
    names = LOOPBACK_NAMES if is_loopback(bound.getsockname()[0]) else None
    config = uvicorn.Config(
        Server(served, owner, token, names).app(),
        http=_Protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        access_log=False,
        log_level="error",
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=2,
    )
    return uvicorn.Server(config)


def address_of(bound: socket.socket) -> str:
    """The URL of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def warn_if_public(host: str, token: str | None) -> None:
    """Warn if other machines can reach the server."""
    if not is_loopback(host):
        access = "with the token" if token else "WITHOUT A TOKEN: set one with --token-file"
        print(f"warning: anyone who can reach {host} can use this model, {access}", file=sys.stderr)
