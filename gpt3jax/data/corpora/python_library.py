"""Python's standard library as a corpus: the source and documentation of the running Python."""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Iterator, Sequence

from gpt3jax.data.corpora.documents import Document, Part, Skipped, decode_document
from gpt3jax.data.corpora.text_files import read_text, walk
from gpt3jax.errors import ConfigError

_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_LITERAL = re.compile(r"b?['\"]|0x|[-\d{}\[\]()]")
_TOPICS = "pydoc_data/topics.py"


def python_parts() -> list[Part]:
    """All source and text files of the running Python, without tests and installed packages.

    Raises:
      ConfigError: this Python has no source.
    """
    root = sysconfig.get_path("stdlib")
    parts = []
    for key, path in sorted(walk(root)):
        if _NOT_LIBRARY.intersection(key.split("/")) or not os.path.isfile(path):
            continue
        size = os.path.getsize(path)
        if key == _TOPICS:
            parts.append(Part("topics", path, key, 0, size, size))
        elif key.endswith(".py"):
            parts.append(Part("python", path, key, 0, size, size))
        elif key.endswith((".txt", ".rst")):
            parts.append(Part("text", path, key, 0, size, size))
    if not parts:
        raise ConfigError(
            f"corpus python-library is empty: {root} has no source. Give a folder of text"
        )
    return parts


def read_python(part: Part, fields: Sequence[str]) -> Iterator[Document | Skipped]:
    """One source file; tables of data are skipped."""
    for document in read_text(part, fields):
        if isinstance(document, Document) and _is_table(document.text):
            yield Skipped(document.key, "table of data")
        else:
            yield document


def _is_table(source: str) -> bool:
    """Whether most lines begin with a literal, as in generated tables."""
    lines = [line for line in map(str.strip, source.splitlines()) if line]
    return sum(bool(_LITERAL.match(line)) for line in lines) > len(lines) / 2


def read_topics(part: Part, fields: Sequence[str]) -> Iterator[Document | Skipped]:
    """The help topics of the language reference, which Python has as one dict of strings."""
    from pydoc_data.topics import topics

    for name, text in topics.items():
        yield decode_document(f"{part.key}:{name}", text.encode())
