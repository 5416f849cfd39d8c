"""Files of a corpus, and documents that are text. A part owns the lines that begin in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from gpt3jax.data.corpora.documents import Document, Part, Skipped, decode_document


def walk(folder: str) -> Iterator[tuple[str, str]]:
    """(path within the folder, path) of every file under it that is not hidden.

    A folder that is not read, since it is closed or a link, is given as a file would be.
    """
    closed, links = [], []
    for here, folders, files in os.walk(folder, onerror=lambda e: closed.append(e.filename)):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links += [path for name in folders if os.path.islink(path := os.path.join(here, name))]
        for name in files:
            if not name.startswith("."):
                path = os.path.join(here, name)
                yield os.path.relpath(path, folder).replace(os.sep, "/"), path
    for path in closed + links:
        yield os.path.relpath(path, folder).replace(os.sep, "/"), path


def split_file(kind: str, path: str, key: str, size: int, limit: int) -> list[Part]:
    """Parts of at most about `limit` bytes; an empty file is one part, for it to be counted."""
    starts = range(0, max(size, 1), limit)
    parts = []
    for start in starts:
        stop = min(start + limit, size)
        name = key if len(starts) == 1 else f"{key}:{start}"
        parts.append(Part(kind, path, name, start, stop, stop - start))
    return parts


def line_start(file: BinaryIO, offset: int) -> int:
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
            start, stop = line_start(file, part.start), line_start(file, part.stop)
            file.seek(start)
            raw = file.read(stop - start)
    except OSError as error:
        yield Skipped(part.key, "unreadable", str(error.strerror))
        return
    # A part inside one long line owns no line; that is no document lost.
    if raw or part.start == part.stop:
        yield decode_document(part.key, raw)
