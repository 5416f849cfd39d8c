"""Files of a corpus, and text documents. A part consists of the lines that begin in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from gpt3jax.data.corpora.documents import Document, Part, Skipped, decode_document


def walk(folder: str) -> Iterator[tuple[str, str]]:
    """(relative path, path) of every file in a folder that is not hidden.

    Unreadable folders and links to folders are not entered; they are yielded like files.
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
    """Parts of about `limit` bytes at most; an empty file is one part, so that it is counted."""
    starts = range(0, max(size, 1), limit)
    parts = []
    for start in starts:
        stop = min(start + limit, size)
        name = key if len(starts) == 1 else f"{key}:{start}"
        parts.append(Part(kind, path, name, start, stop, stop - start))
    return parts


def line_start(file: BinaryIO, offset: int) -> int:
    """Offset of the first line that begins at or after an offset."""
    if offset == 0:
        return 0
    file.seek(offset - 1)
    file.readline()
    return file.tell()


def read_text(part: Part, fields: Sequence[str]) -> Iterator[Document | Skipped]:
    """The document of a text part."""
    try:
        with open(part.path, "rb") as file:
            start, stop = line_start(file, part.start), line_start(file, part.stop)
            file.seek(start)
            raw = file.read(stop - start)
    except OSError as error:
        yield Skipped(part.key, "unreadable", str(error.strerror))
        return
    # A part inside one long line has no lines; its text is in an earlier part.
    if raw or part.start == part.stop:
        yield decode_document(part.key, raw)
