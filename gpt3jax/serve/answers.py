"""Responses in OpenAI's JSON format, complete or streamed as server-sent events."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from gpt3jax.serve.api import ApiError, Completion, Served
from gpt3jax.serve.batching import BusyError, Owner
from gpt3jax.serve.texts import Job, Piece, Scored

PATIENCE = 30.0
"""Timeout, in seconds, for a client to receive a response or to send the rest of a request."""


class Answer:
    """The response to one request, as an ASGI application; it ends when the client disconnects."""

    def __init__(self, request: Completion, served: Served, owner: Owner) -> None:
        """Queue the request.

        Raises:
          ApiError: the queue is full.
        """
        loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()

        def deliver(piece: Piece | Exception) -> None:
            loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

        self._request, self._served, self._owner = request, served, owner
        self._job, self._completion_tokens = Job(request, deliver), 0
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": served.name,
        }
        try:
            owner.submit(self._job)
        except BusyError as error:
            raise ApiError(429, "the server is busy: its queue is full. Try again") from error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, then cancel the job, which frees its rows on the device."""
        sending = asyncio.ensure_future(self._send(scope, receive, send))
        disconnect = asyncio.ensure_future(_wait_for_disconnect(receive))
        try:
            await asyncio.wait({sending, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._owner.cancel(self._job)
            for task in (sending, disconnect):
                task.cancel()
            await asyncio.gather(sending, disconnect, return_exceptions=True)

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._request.stream:
            await self._send_events(send)
            return
        try:
            response = JSONResponse(await self._complete_response())
        except ApiError as error:
            response = JSONResponse(error.to_json(), error.status)
        async with asyncio.timeout(PATIENCE):
            await response(scope, receive, send)

    async def _send_events(self, send: Send) -> None:
        """Send a server-sent event for each piece, then [DONE]."""
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for event in self._events():
            data = f"data: {event}\n\n".encode()
            async with asyncio.timeout(PATIENCE):
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncIterator[str]:
        try:
            async for piece in self._receive_pieces():
                yield json.dumps({**self._head, "choices": [self._choice(piece)]})
            if self._request.include_usage:
                yield json.dumps({**self._head, "choices": [], "usage": self._usage()})
            yield "[DONE]"
        except ApiError as error:
            yield json.dumps(error.to_json())

    async def _complete_response(self) -> dict[str, Any]:
        pieces = [piece async for piece in self._receive_pieces()]
        choices = [self._choice(piece) for piece in sorted(pieces, key=lambda each: each.index)]
        return {**self._head, "choices": choices, "usage": self._usage()}

    async def _receive_pieces(self) -> AsyncIterator[Piece]:
        """Yield pieces until all rows are finished.

        Raises:
          ApiError: the device failed, or the server is shutting down.
        """
        unfinished = len(self._request.prompts) * self._request.samples
        while unfinished:
            piece = await self._pieces.get()
            if isinstance(piece, Exception):
                raise ApiError(500, f"the text could not be generated: {str(piece)[:200]}")
            self._completion_tokens += piece.written
            unfinished -= piece.finish is not None
            yield piece

    def _choice(self, piece: Piece) -> dict[str, Any]:
        has_logprobs = self._request.logprobs is not None
        return {
            "text": piece.text,
            "index": piece.index,
            "logprobs": logprobs(piece.tokens, self._served.names) if has_logprobs else None,
            "finish_reason": piece.finish,
        }

    def _usage(self) -> dict[str, int]:
        prompt, completion = sum(map(len, self._request.prompts)), self._completion_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }


def logprobs(tokens: tuple[Scored, ...], names: tuple[str, ...]) -> dict[str, Any]:
    """Logprobs (nats) in the format of OpenAI's completions; `names` are unique token names."""
    return {
        "tokens": [names[each.token] for each in tokens],
        "token_logprobs": [each.log_probability for each in tokens],
        "top_logprobs": [
            {names[token]: log for token, log in each.best} if each.best else None
            for each in tokens
        ],
        "text_offset": [each.offset for each in tokens],
    }


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
