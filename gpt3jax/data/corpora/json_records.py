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
"""Bytes at the start of a file in which its first record is looked for."""


def json_kind(path: str, size: int, fields: Sequence[str], is_asked: bool) -> str | None:
    """Whether a .jsonl, .ndjson or .json file is `jsonl` or one `json` value; None if it is text.

    A .json file holds JSON lines, an array of records, or a single record. Where no field was
    asked for it may be something else, such as settings: it is text, unless it is one of the
    first two and its first record has a string in the field `text`.

    Raises:
      ConfigError: no record has the fields, or a .json file has none of these forms.
      OSError: it cannot be read.
    """
    is_lines = not size or not path.lower().endswith(".json")
    if not is_lines:
        first, is_lines, is_array = first_record(path)
        has_text = isinstance(first, dict) and isinstance(first.get("text"), str)
        if not is_asked and not (has_text and (is_lines or is_array)):
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
    """The first record of a file, whether it has a line of its own, and whether it is in an array.

    The record is None where the file does not begin with one.
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
    wrong, count = None, 0
    for row in rows:
        found = dict(row) if isinstance(row, tuple) else row
        named = found if isinstance(row, tuple) else {}
        if all(isinstance(named.get(each, 0), str | None) for each in fields):
            return
        lacking = row_document(path, found, fields)
        wrong = wrong or lacking
        count += lacking.reason == wrong.reason
    if wrong:
        raise ConfigError(
            f"{path} has nothing to read: {count:,} {wrong.reason} "
            f"({truncate(wrong.detail, 100)}). {choose_field(fields)}"
        )


def read_jsonl(part: Part, fields: Sequence[str]) -> Iterator[Document | Skipped]:
    """The documents of a part of a file of JSON lines."""
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
    """(position, line) of the lines that begin in a range of bytes."""
    with open(path, "rb") as file:
        position, stop = line_start(file, start), line_start(file, stop)
        file.seek(position)
        while position < stop:
            line = file.readline()
            yield position, line
            position += len(line)


def _records(path: str, size: int) -> Iterator[Any]:
    """The lines of a file that are JSON."""
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
    """A JSON value, its objects as tuples of (name, value), so that no name given twice is lost."""
    return json.loads(_decode(raw), object_pairs_hook=tuple)


def _decode(raw: bytes) -> str:
    """The text of bytes. Those that are not UTF-8 become lone surrogates: JSON still parses.

    A byte order mark is no part of JSON, also at the start of a line, where files were joined.
    """
    return raw.removeprefix(codecs.BOM_UTF8).decode(errors="surrogateescape")
