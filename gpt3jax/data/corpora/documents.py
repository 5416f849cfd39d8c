"""What a corpus is made of: documents, what was skipped, and parts to read them from."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
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
    prompt: str = ""
    """Of a pair: what comes before the text, to be read but not learned."""


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


def decode_document(key: str, raw: bytes, prompt: bytes | None = None) -> Document | Skipped:
    """The document that bytes are. CRLF and NUL are text and stay as they are.

    With a prompt, which may be empty, the bytes are its completion.
    """
    if not raw:
        return Skipped(key, "empty" if prompt is None else "empty completion")
    before = prompt or b""
    try:
        return Document(key, raw.decode(), False, before.decode())
    except UnicodeDecodeError:
        if b"\0" in raw[:BINARY_PROBE]:
            return Skipped(key, "binary")
        return Document(key, raw.decode(errors="replace"), True, before.decode(errors="replace"))


_KINDS = {int: "a number", float: "a number", bool: "true or false", list: "a list",
          type(None): "null"}  # fmt: skip


def row_document(key: str, row: Any, fields: Sequence[str]) -> Document | Skipped:
    """The document in one field of a row, or in two: a prompt and its completion.

    A lone surrogate in it counts as invalid UTF-8.
    """
    for field in fields:
        if not isinstance(row, dict):
            return Skipped(key, f"no text in field {field!r}", "not an object")
        if field not in row:
            return Skipped(key, f"no text in field {field!r}", f"fields: {', '.join(row)}")
        if not isinstance(row[field], str):
            kind = _KINDS.get(type(row[field]), "an object")
            return Skipped(key, f"no text in field {field!r}", f"it is {kind}")
    *prompt, text = (row[field].encode(errors="surrogatepass") for field in fields)
    return decode_document(key, text, *prompt)


def choose_field(fields: Sequence[str]) -> str:
    """What to do where records do not have the fields."""
    return "Pass --field with one" if len(fields) == 1 else "Pass --pairs with two"


def count_of(number: int, noun: str) -> str:
    """A number with its noun: `1 document`, `1,200 documents`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def count_reasons(skipped: Counter) -> str:
    """What was left out, by reason, the most frequent first: `617 binary, 3 empty`."""
    return ", ".join(f"{count:,} {reason}" for reason, count in skipped.most_common())


def hash_key(key: str) -> int:
    """64 bits that depend on the key alone, on every machine."""
    digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
