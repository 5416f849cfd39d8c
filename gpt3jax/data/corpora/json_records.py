"""Documents in JSON files: JSON lines, an array of records, or a single record."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from gpt3jax.data.corpora.documents import Document, Part, Skipped, choose_field, row_document
from gpt3jax.data.corpora.text_files import line_start
from gpt3jax.errors import ConfigError, truncate

LONGEST_RECORD = 16 << 20
"""Bytes at the start of a file that are searched for its first record."""


def json_kind(path: str, size: int, fields: Sequence[str], is_explicit: bool) -> str | None:
    """The format of a .jsonl, .ndjson or .json file: `jsonl`, one `json` value, or None for text.

    A .json file has JSON lines, an array of records, or a single record. Without an explicit
    field (`is_explicit`), it may be something else, such as settings: it is read as text unless it
    has one of the first two formats and its first record has a string in the field `text`.

    Raises:
      ConfigError: no record has the fields, or a .json file has none of these formats.
      OSError: the file cannot be read.
    """
    is_lines = not size or not path.lower().endswith(".json")
    if not is_lines:
        first, is_lines, is_array = first_record(path)
        has_text = isinstance(first, dict) and isinstance(first.get("text"), str)
        if not is_explicit and not (has_text and (is_lines or is_array)):
            return None
    if is_lines:
        _check_fields(path, _records(path, size), fields)
        return "jsonl"
    try:
        rows = _load(path)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} is neither JSON lines nor a JSON array or object: {truncate(str(error), 80)}. "
            "Correct it, or leave it out of --corpus"
        ) from error
    _check_fields(path, rows, fields)
    return "json"


def first_record(path: str) -> tuple[Any, bool, bool]:
    """The first record of a file, whether it fills a line, and whether it is in an array.

    The record is None if the file does not begin with one.
    """
    with open(path, "rb") as file:
        head = file.read(64)
        if not head.removeprefix(codecs.BOM_UTF8).lstrip().startswith((b"{", b"[")):
            return None, False, False
        text = _decode(head + file.read(LONGEST_RECORD)).lstrip()
    is_array = text.startswith("[")
    text = text[is_array:].lstrip()
    try:
        record, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None, False, is_array
    is_line = len(text.partition("\n")[0].rstrip()) == end
    return record, is_line and not is_array, is_array


def _check_fields(path: str, rows: Iterable[Any], fields: Sequence[str]) -> None:
    """Refuse a file in which no record has text, or null, in each of the fields."""
    first, count = None, 0
    for row in rows:
        record = dict(row) if isinstance(row, tuple) else row
        values = record if isinstance(row, tuple) else {}
        if all(isinstance(values.get(field, 0), str | None) for field in fields):
            return
        skipped = row_document(path, record, fields)
        assert isinstance(skipped, Skipped)  # A document has text in each field.
        first = first or skipped
        count += skipped.reason == first.reason
    if first:
        raise ConfigError(
            f"{path} has nothing to read: {count:,} {first.reason} "
            f"({truncate(first.detail, 100)}). {choose_field(fields)}"
        )


def read_jsonl(part: Part, fields: Sequence[str]) -> Iterator[Document | Skipped]:
    """The documents of a part of a JSON lines file."""
    if part.start == part.stop:
        yield Skipped(part.key, "empty")
    name = part.key.removesuffix(f":{part.start}")
    try:
        for position, line in _lines(part.path, part.start, part.stop):
            yield _line_document(f"{name}:{position}", line, fields)
    except OSError as error:
        yield Skipped(part.key, "unreadable", str(error.strerror))


def _line_document(key: str, line: bytes, fields: Sequence[str]) -> Document | Skipped:
    if not line.strip():
        return Skipped(key, "empty")
    try:
        return _document(key, _parse(line), fields)
    except (ValueError, RecursionError):
        return Skipped(key, "malformed JSON")


def read_json(part: Part, fields: Sequence[str]) -> Iterator[Document | Skipped]:
    """The documents of a file that is one JSON value."""
    try:
        rows = _load(part.path)
    except (OSError, ValueError, RecursionError) as error:
        yield Skipped(part.key, "unreadable", str(error))
        return
    for number, row in enumerate(rows):
        yield _document(f"{part.key}:{number}", row, fields)


def _document(key: str, row: Any, fields: Sequence[str]) -> Document | Skipped:
    if isinstance(row, tuple):
        names = [name for name, _ in row]
        for field in fields:
            if names.count(field) > 1:
                return Skipped(key, f"field {field!r} twice")
        row = dict(row)
    return row_document(key, row, fields)


def _lines(path: str, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of each line that begins in a range of bytes."""
    with open(path, "rb") as file:
        position, stop = line_start(file, start), line_start(file, stop)
        file.seek(position)
        while position < stop:
            line = file.readline()
            yield position, line
            position += len(line)


def _records(path: str, size: int) -> Iterator[Any]:
    """The values of the valid lines of a JSON lines file."""
    for _, line in _lines(path, 0, size):
        try:
            yield _parse(line)
        except (ValueError, RecursionError):
            continue


def _load(path: str) -> list[Any]:
    """The records of a file that is one JSON value."""
    with open(path, "rb") as file:
        value = _parse(file.read())
    return value if isinstance(value, list) else [value]


def _parse(raw: bytes) -> Any:
    """Parse JSON with objects as tuples of (key, value), which preserve duplicate keys."""
    return json.loads(_decode(raw), object_pairs_hook=tuple)


def _decode(raw: bytes) -> str:
    """Decode UTF-8, with invalid bytes as lone surrogates, which JSON can parse.

    A byte order mark is removed, also at the start of a line, where files were concatenated.
    """
    return raw.removeprefix(codecs.BOM_UTF8).decode(errors="surrogateescape")
