"""Elements of a corpus: documents, skipped records, and the parts that they are read from."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

PART_BYTES = 4 << 20
"""Approximate text in a part: it fits in memory and amortises the cost of a task."""
BINARY_PROBE = 8 << 10
"""Bytes at the start of a file that are searched for NUL."""


class Document(NamedTuple):
    """A text with a key that does not depend on the location of the corpus.

    Keys are relative paths, such as `notes/a.txt` and `web.jsonl:8192`.
    """

    key: str
    text: str
    replaced: bool
    """Whether U+FFFD replaced invalid UTF-8."""
    prompt: str = ""
    """For a pair: the prompt, which does not count in the loss."""


class Skipped(NamedTuple):
    """A record that was skipped; reasons are few, so that they can be counted."""

    key: str
    reason: str
    detail: str = ""


class Part(NamedTuple):
    """A unit of work: bytes [start, stop) of a file, a Parquet row group, or rows of a data set."""

    kind: str
    path: str
    key: str
    start: int
    stop: int
    bytes: int
    """Estimated text size, without reading the part."""


def decode_document(key: str, raw: bytes, prompt: bytes | None = None) -> Document | Skipped:
    """Decode UTF-8 bytes to a document. CRLF and NUL are preserved.

    With a prompt, which may be empty, the bytes are its completion.
    """
    if not raw:
        return Skipped(key, "empty" if prompt is None else "empty completion")
    prompt = prompt or b""
    try:
        return Document(key, raw.decode(), False, prompt.decode())
    except UnicodeDecodeError:
        if b"\0" in raw[:BINARY_PROBE]:
            return Skipped(key, "binary")
        return Document(key, raw.decode(errors="replace"), True, prompt.decode(errors="replace"))


_KINDS = {
    int: "a number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    type(None): "null",
}


def row_document(key: str, row: Any, fields: Sequence[str]) -> Document | Skipped:
    """The document in one field of a row, or in two fields: a prompt and its completion.

    A lone surrogate counts as invalid UTF-8.
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
    """The advice in an error message where records lack the fields."""
    return "Pass --field with one" if len(fields) == 1 else "Pass --pairs with two"


def count_of(number: int, noun: str) -> str:
    """A number with its noun: `1 document`, `1,200 documents`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def count_reasons(skipped: Counter) -> str:
    """Skipped records by reason, in descending order: `617 binary, 3 empty`."""
    return ", ".join(f"{count:,} {reason}" for reason, count in skipped.most_common())


def hash_key(key: str) -> int:
    """A portable 64-bit hash of a key."""
    digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
