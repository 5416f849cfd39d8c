"""What a corpus is made of: documents, what was skipped, and parts to read them from."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

PART_BYTES = 4 << 20
"""Text in a part, about: small enough to hold in memory, large enough to be worth a task."""
BINARY_PROBE = 8 << 10
"""Bytes of a file that are searched for NUL."""


class Document(NamedTuple):
    """One text. The key names it wherever the corpus lies (`notes/a.txt`, `web.jsonl:8192`)."""

    key: str
    text: str
    replaced: bool
    """The bytes were not valid UTF-8; U+FFFD stands for each that was not."""


class Skipped(NamedTuple):
    """What was left out, and why; the reasons are few, so that they can be counted."""

    key: str
    reason: str
    detail: str = ""


class Part(NamedTuple):
    """A unit of work: bytes [start, stop) of a file, one Parquet row group, or rows of a set."""

    kind: str
    path: str
    key: str
    start: int
    stop: int
    bytes: int
    """Text in it, as far as can be known without reading it."""


def decode_document(key: str, raw: bytes) -> Document | Skipped:
    """The document that bytes are. CRLF and NUL are text and stay as they are."""
    if not raw:
        return Skipped(key, "empty")
    try:
        return Document(key, raw.decode(), False)
    except UnicodeDecodeError:
        if b"\0" in raw[:BINARY_PROBE]:
            return Skipped(key, "binary")
        return Document(key, raw.decode(errors="replace"), True)


def row_document(key: str, row: Any, field: str) -> Document | Skipped:
    """The document in one field of a row; a lone surrogate in it counts as invalid UTF-8."""
    text = row.get(field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        there = f"fields: {', '.join(row)}" if isinstance(row, dict) else "not an object"
        return Skipped(key, f"no text in field {field!r}", there)
    return decode_document(key, text.encode(errors="surrogatepass"))


def hash_key(key: str) -> int:
    """64 bits that depend on the key alone, on every machine."""
    digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
