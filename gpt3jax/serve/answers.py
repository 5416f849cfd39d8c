"""What is answered: text as OpenAI's JSON, whole or as events, while somebody listens."""

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
"""Seconds in which a client takes what it was sent, or sends what it began."""
RETRY_AFTER = "1"


class Answer:
    """The answer to one request, as an ASGI application: it ends when the client has gone."""

    def __init__(self, asked: Completion, served: Served, owner: Owner) -> None:
        """Queue the request.

        Raises:
          ApiError: there is no room.
        """
        loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()

        def deliver(piece: Piece | Exception) -> None:
            loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

        self._asked, self._served, self._owner = asked, served, owner
        self._job, self._written = Job(asked, deliver), 0
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion",
            "created": int(time.time()), "model": served.name,
        }  # fmt: skip
        self.status = 499
        """Sent, or 499 where the client left before."""
        try:
            owner.submit(self._job)
        except BusyError as error:
            raise ApiError(429, "the server is busy: its queue is full. Try again") from error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer; whatever ends it, the device is free of the request after it."""
        sending = asyncio.ensure_future(self._send(scope, receive, send))
        leaving = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._owner.cancel(self._job)
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._asked.stream:
            await self._send_events(send)
            return
        try:
            body, self.status = await self._whole(), 200
        except ApiError as error:
            body, self.status = error.to_json(), error.status
        async with asyncio.timeout(PATIENCE):
            await JSONResponse(body, self.status)(scope, receive, send)

    async def _send_events(self, send: Send) -> None:
        """Server-sent events: a chunk for each piece, and [DONE]."""
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        self.status = 200
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for event in self._events():
            data = f"data: {event}\n\n".encode()
            async with asyncio.timeout(PATIENCE):
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncIterator[str]:
        try:
            async for piece in self._coming():
                text = piece.text
                choice = self._choice(piece.index, text, piece.tokens, piece.finish)
                yield json.dumps({**self._head, "choices": [choice]})
            if self._asked.include_usage:
                yield json.dumps({**self._head, "choices": [], "usage": self._usage()})
            yield "[DONE]"
        except ApiError as error:
            yield json.dumps(error.to_json())

    async def _whole(self) -> dict[str, Any]:
        pieces = sorted([piece async for piece in self._coming()], key=lambda each: each.index)
        choices = [
            self._choice(piece.index, piece.text, piece.tokens, piece.finish) for piece in pieces
        ]
        return {**self._head, "choices": choices, "usage": self._usage()}

    async def _coming(self) -> AsyncIterator[Piece]:
        """Pieces until each row is over.

        Raises:
          ApiError: the device failed, or the server is shutting down.
        """
        left = len(self._asked.prompts) * self._asked.samples
        while left:
            piece = await self._pieces.get()
            if isinstance(piece, Exception):
                raise ApiError(500, f"the text could not be written: {str(piece)[:200]}")
            self._written += piece.written
            left -= piece.finish is not None
            yield piece

    def _choice(
        self, index: int, text: str, tokens: tuple[Scored, ...], finish: str | None
    ) -> dict[str, Any]:
        scores = None
        if self._asked.logprobs is not None:
            scores = logprobs(tokens, self._served.names)
        return {"text": text, "index": index, "logprobs": scores, "finish_reason": finish}

    def _usage(self) -> dict[str, int]:
        prompt, written = self._asked.prompt_tokens, self._written
        total = prompt + written
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": total}


def logprobs(tokens: tuple[Scored, ...], names: tuple[str, ...]) -> dict[str, Any]:
    """Scores of tokens as OpenAI's completions have them, nats; each token has its own name."""
    return {
        "tokens": [names[each.token] for each in tokens],
        "token_logprobs": [each.log_probability for each in tokens],
        "top_logprobs": [
            {names[token]: log for token, log in each.best} if each.best else None
            for each in tokens
        ],
        "text_offset": [each.offset for each in tokens],
    }


async def _gone(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
