"""A server under load: many connections, some slow, some that leave, some that send rubbish.

    python tests/serve/load.py URL --connections 500 --seconds 60
    python tests/serve/load.py URL --speed --tokens 200

Plain sockets, so that a client can misbehave. Prints what was answered; exits with 1 where an
answer was none of 2xx, 4xx or was not whole. `--speed` compares eight requests at once with one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections import Counter
from urllib.parse import urlsplit

PROMPTS = ("def main(", "import os\n", "class A:\n    def __init__(self", "", "x = 1\n" * 20)


def request(body: bytes, length: int | None = None, kind: str = "application/json") -> bytes:
    """The bytes of a POST."""
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n"
    )
    return head.encode() + body


def asked(draw: random.Random, **fields) -> bytes:
    return json.dumps(
        {
            "prompt": draw.choice(PROMPTS), "max_tokens": draw.randint(1, 60),
            "seed": draw.randrange(4), "temperature": draw.choice((0, 0.8, 1.0)), **fields,
        }
    ).encode()  # fmt: skip


async def ask(address: tuple[str, int], data: bytes, *, read_slowly: bool = False) -> bytes:
    """All bytes of an answer."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(data)
        await writer.drain()
        found = bytearray()
        while chunk := await reader.read(64 if read_slowly else 1 << 16):
            found += chunk
            if read_slowly:
                await asyncio.sleep(0.02)
        return bytes(found)
    finally:
        writer.close()


async def well(address, draw):
    return "well-formed", await ask(address, request(asked(draw)))


async def streamed(address, draw):
    return "streamed", await ask(address, request(asked(draw, stream=True)))


async def slow(address, draw):
    data = request(asked(draw, stream=True, logprobs=5))
    return "slow reader", await ask(address, data, read_slowly=True)


async def dripping(address, draw):
    """Sends its request a few bytes at a time."""
    reader, writer = await asyncio.open_connection(*address)
    data = request(asked(draw))
    for at in range(0, len(data), 40):
        writer.write(data[at : at + 40])
        await writer.drain()
        await asyncio.sleep(0.05)
    found = await reader.read(-1)
    writer.close()
    return "slow sender", found


async def leaving(address, draw):
    """Leaves in the middle of its answer."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(request(asked(draw, stream=draw.random() < 0.7, max_tokens=2000)))
    await writer.drain()
    await asyncio.sleep(draw.random() * 0.5)
    writer.transport.abort()
    return "left", b""


async def oversized(address, draw):
    return "oversized", await ask(address, request(b'{"prompt": "' + b"x" * (2 << 20) + b'"}'))


async def malformed(address, draw):
    body = draw.choice(
        (b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"prompt": 1}', b'{"n": 1e999}', b"[" * 5000,
         b'{"max_tokens": 99999999999999999999}', b'{"prompt": ["a", 1]}', b'{"seed": -1}',
         b'{"prompt": "\\ud800"}', b'{"temperature": NaN}', b'{"nonsense": true}',
         bytes(draw.randrange(256) for _ in range(50)))
    )  # fmt: skip
    return "malformed", await ask(address, request(body))


async def not_http(address, draw):
    rubbish = bytes(draw.randrange(256) for _ in range(200)) + b"\r\n\r\n"
    return "not HTTP", await ask(address, rubbish)


CLIENTS = (well, well, well, streamed, streamed, slow, dripping, leaving, oversized, malformed,
           not_http)  # fmt: skip


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def is_whole(answer: bytes) -> bool:
    """Whether a 200 ends as it should."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"text/event-stream" in head:
        return body.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    return isinstance(json.loads(body), dict)


async def load(address: tuple[str, int], connections: int, seconds: float) -> Counter:
    """Answers by kind of client and status, of so many connections at a time."""
    end, counts = time.monotonic() + seconds, Counter()

    async def client(number: int) -> None:
        draw = random.Random(number)
        while time.monotonic() < end:
            try:
                name, answer = await draw.choice(CLIENTS)(address, draw)
                status = status_of(answer)
                if status == 200 and not is_whole(answer):
                    status = -1
                counts[name, 0 if name == "left" else status] += 1
                if status == 429:
                    await asyncio.sleep(draw.random())
            except OSError as error:
                counts[type(error).__name__, -2] += 1

    await asyncio.gather(*map(client, range(connections)))
    return counts


def is_right(name: str, status: int) -> bool:
    """2xx and 4xx; nothing only to who left."""
    return name == "left" or 200 <= status < 300 or 400 <= status < 500


async def speed(address: tuple[str, int], tokens: int, repeats: int) -> dict[str, float]:
    """Tokens/s of one request and of eight at once, in alternation: medians, and the best."""

    async def written(seeds: list[int]) -> list[int]:
        """Tokens of each request."""
        bodies = [
            json.dumps({"prompt": [300], "max_tokens": tokens, "seed": seed}).encode()
            for seed in seeds
        ]
        answers = await asyncio.gather(*(ask(address, request(body)) for body in bodies))
        found = [json.loads(answer.partition(b"\r\n\r\n")[2]) for answer in answers]
        return [each["usage"]["completion_tokens"] for each in found]

    async def measure(count: int) -> float:
        began = time.perf_counter()
        return sum(await written(seeds[:count])) / (time.perf_counter() - began)

    # Texts that do not end before.
    tried = list(range(100))
    ends = await written(tried)
    seeds = [seed for seed, end in zip(tried, ends, strict=True) if end == tokens][:8]
    pairs = [(await measure(1), await measure(8)) for _ in range(repeats + 1)][1:]
    one, eight = zip(*pairs, strict=True)
    return {
        "one": statistics.median(one), "eight": statistics.median(eight),
        "ratio": statistics.median(b / a for a, b in pairs),
        "best_one": max(one), "best_eight": max(eight), "ratio_of_best": max(eight) / max(one),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--connections", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    url = urlsplit(given.url)
    address = (url.hostname, url.port)
    if given.speed:
        print(json.dumps(asyncio.run(speed(address, given.tokens, given.repeats)), indent=2))
        return 0
    counts = asyncio.run(load(address, given.connections, given.seconds))
    for (name, status), count in sorted(counts.items()):
        print(f"{name:20} {status:5} {count:7}")
    return 0 if all(is_right(*key) for key in counts) else 1


if __name__ == "__main__":
    sys.exit(main())
