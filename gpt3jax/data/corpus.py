"""A corpus: documents from files, Hugging Face data sets, Python itself, or a function of yours.

It is opened into parts, small records that pickle, so that any process can read
any part, one document at a time. What cannot be a document is yielded as
`Skipped`, for the caller to count.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gpt3jax.config import ConfigError
from gpt3jax.data.documents import PART_BYTES, Document, Part, Skipped
from gpt3jax.data.files import cut, read_jsonl, read_text, walk
from gpt3jax.data.generated import generated_parts, read_generated
from gpt3jax.data.library import python_parts, read_python, read_topics
from gpt3jax.data.tables import huggingface_parts, parquet_parts, read_huggingface, read_parquet

SMALLEST_CUT = 16 << 10
"""A text file is never cut into documents of fewer bytes than this."""


@dataclass(frozen=True)
class Corpus:
    """A named body of text in parts, and the files that were left out when it was opened."""

    name: str
    fields: tuple[str, ...]
    """Where rows keep the text; or the prompt, and the completion."""
    parts: tuple[Part, ...]
    skipped: tuple[Skipped, ...] = ()

    def read(self, part: Part) -> Iterator[Document | Skipped]:
        """The documents of one part, in their order."""
        return _READERS[part.kind](part, self.fields)


def open_corpus(spec: str, *fields: str) -> Corpus:
    """Find the parts of a corpus, without reading its text where that can be.

    Args:
      spec: `python-library` (source and documentation of the running Python),
        `hf:NAME` or `hf:NAME:CONFIG` (the train split), `generated:FILE.py` (what
        its function `documents()` yields), or a file, a folder or a glob. Files
        ending in .jsonl and .parquet are read as such, all others as text. Hidden
        files are left out.
      fields: where JSONL, Parquet and Hugging Face rows keep the text (`text` if not given); two
        of them, where they keep a prompt and its completion.

    A text file is one document. In a corpus of under 100 files, one that holds
    more than 1% of the text is cut into documents at line ends, or no small
    share of it could be held out; so is any file of more than 4 MiB.

    Raises:
      ConfigError: there is no such corpus, no files in it, or no such field.
    """
    fields = fields or ("text",)
    if spec == "python-library" and len(fields) == 1:
        return Corpus(spec, fields, tuple(python_parts()))
    if spec.startswith("hf:"):
        return Corpus(spec, fields, tuple(huggingface_parts(spec, fields)))
    if spec.startswith("generated:") and len(fields) == 1:
        return Corpus(spec, fields, tuple(generated_parts(spec)))
    return _open_files(spec, fields)


def _open_files(spec: str, fields: tuple[str, ...]) -> Corpus:
    parts, skipped, texts = [], [], []
    for key, path in _find(spec):
        try:
            status = os.stat(path)
            if stat.S_ISDIR(status.st_mode):
                skipped.append(Skipped(key, "unreadable"))
            elif not stat.S_ISREG(status.st_mode):
                skipped.append(Skipped(key, "not a regular file"))
            elif path.endswith(".jsonl"):
                parts += cut("jsonl", path, key, status.st_size, PART_BYTES)
            elif path.endswith(".parquet"):
                parts += parquet_parts(path, key, fields)
            elif len(fields) > 1:
                skipped.append(Skipped(key, "not .jsonl or .parquet"))
            else:
                texts.append((key, path, status.st_size))
        except OSError as error:
            skipped.append(Skipped(key, "unreadable", str(error.strerror or error)))
    limit = PART_BYTES
    if len(texts) < 100:
        limit = min(limit, max(SMALLEST_CUT, sum(size for *_, size in texts) // 100))
    for key, path, size in texts:
        parts += cut("text", path, key, size, limit)
    return Corpus(spec, fields, tuple(parts), tuple(skipped))


def _find(spec: str) -> list[tuple[str, str]]:
    """Files that a path or glob names, as (key, path) in the order of their keys."""
    path = os.path.expanduser(spec)
    if os.path.isdir(path):
        found = sorted(walk(path))
    elif os.path.lexists(path):
        found = [(os.path.basename(path), path)]
    else:
        matches = sorted(glob.glob(path, recursive=True))
        found = [(match, match) for match in matches if not os.path.isdir(match)]
    if not found:
        raise ConfigError(
            f"corpus {spec!r} has no files: no file, folder or glob of that name holds any. "
            "Check the path"
        )
    return found


_READERS: dict[str, Callable[[Part, tuple[str, ...]], Iterator[Document | Skipped]]] = {
    "text": read_text,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "hf": read_huggingface,
    "python": read_python,
    "topics": read_topics,
    "generated": read_generated,
}
