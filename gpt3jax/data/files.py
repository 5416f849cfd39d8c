"""Documents in files: text and JSONL. A part of a file owns the lines that begin in it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from gpt3jax.data.documents import Document, Part, Skipped, decode_document, row_document


def walk(folder: str) -> Iterator[tuple[str, str]]:
    """(path within the folder, path) of every file under it that is not hidden.

    A folder that cannot be read is given as a file would be.
    """
    closed: list[str] = []
    for here, folders, files in os.walk(folder, onerror=lambda e: closed.append(e.filename)):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                path = os.path.join(here, name)
                yield os.path.relpath(path, folder).replace(os.sep, "/"), path
    for path in closed:
        yield os.path.relpath(path, folder).replace(os.sep, "/"), path


def cut(kind: str, path: str, key: str, size: int, limit: int) -> list[Part]:
    """Parts of at most about `limit` bytes; an empty file is one part, for it to be counted."""
    starts = range(0, max(size, 1), limit)
    parts = []
    for start in starts:
        stop = min(start + limit, size)
        name = key if len(starts) == 1 else f"{key}:{start}"
        parts.append(Part(kind, path, name, start, stop, stop - start))
    return parts


def _line_start(file: BinaryIO, offset: int) -> int:
    """Position of the first line that begins at or after an offset."""
    if offset == 0:
        return 0
    file.seek(offset - 1)
    file.readline()
    return file.tell()


def read_text(part: Part, fields: Sequence[str]) -> Iterator[Document | Skipped]:
    """The one document of a text part."""
    try:
        with open(part.path, "rb") as file:
            start, stop = _line_start(file, part.start), _line_start(file, part.stop)
            file.seek(start)
            raw = file.read(stop - start)
    except OSError as error:
        yield Skipped(part.key, "unreadable", str(error.strerror))
        return
    # A part inside one long line owns no line; that is no document lost.
    if raw or part.start == part.stop:
        yield decode_document(part.key, raw)


def read_jsonl(part: Part, fields: Sequence[str]) -> Iterator[Document | Skipped]:
    """The documents of a JSONL part, one a line."""
    try:
        with open(part.path, "rb") as file:
            position, stop = _line_start(file, part.start), _line_start(file, part.stop)
            file.seek(position)
            name = part.key.removesuffix(f":{part.start}")
            while position < stop:
                line = file.readline()
                yield _json_document(f"{name}:{position}", line, fields)
                position += len(line)
    except OSError as error:
        yield Skipped(part.key, "unreadable", str(error.strerror))


def _json_document(key: str, line: bytes, fields: Sequence[str]) -> Document | Skipped:
    if not line.strip():
        return Skipped(key, "empty")
    try:
        # Invalid bytes travel as lone surrogates, so that the JSON around them still parses.
        row = json.loads(line.decode(errors="surrogateescape"))
    except (ValueError, RecursionError):
        return Skipped(key, "malformed JSON")
    return row_document(key, row, fields)
