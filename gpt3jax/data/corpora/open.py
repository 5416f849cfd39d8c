"""A corpus of documents from files, Hugging Face data sets, Python's library, or a generator.

A corpus is opened as parts, small picklable records, so that any process can
read any part, document by document. What is not a document is yielded as
`Skipped`, for the caller to count.
"""

from __future__ import annotations

import glob
import os
import shlex
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gpt3jax.data.corpora.documents import PART_BYTES, Document, Part, Skipped, count_of
from gpt3jax.data.corpora.generated import generated_parts, read_generated
from gpt3jax.data.corpora.json_records import first_record, json_kind, read_json, read_jsonl
from gpt3jax.data.corpora.python_library import python_parts, read_python, read_topics
from gpt3jax.data.corpora.tables import (
    huggingface_parts,
    parquet_parts,
    read_huggingface,
    read_parquet,
)
from gpt3jax.data.corpora.text_files import read_text, split_file, walk
from gpt3jax.errors import ConfigError

SMALLEST_CUT = 16 << 10
"""Minimum bytes of a document that is cut from a larger text file."""

JSON = (".jsonl", ".ndjson", ".json")
RECORDS = ("jsonl", "json", "parquet", "hf")
"""Kinds of parts whose records have fields."""
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
NOT_RECORDS = "not .jsonl or .parquet or .ndjson or .json"
"""Reason for skipping a file where pairs are read."""


@dataclass(frozen=True)
class Corpus:
    """The parts of a corpus, and the files that were skipped when it was opened."""

    name: str
    fields: tuple[str, ...]
    """The field of the text; or those of the prompt and the completion."""
    parts: tuple[Part, ...]
    skipped: tuple[Skipped, ...] = ()

    def read(self, part: Part) -> Iterator[Document | Skipped]:
        """The documents of one part, in order."""
        return _READERS[part.kind](part, self.fields)


def open_corpus(spec: str | Sequence[str], *fields: str) -> Corpus:
    """Find the parts of a corpus, without reading its text where that can be.

    Args:
      spec: `python-library` (source and documentation of the running Python),
        `hf:NAME` or `hf:NAME:CONFIG` (the train split), `generated:FILE.py` (the
        output of its function `documents()`), or one or several files, folders and
        globs. By extension, in upper or lower case, .jsonl, .ndjson and .parquet
        files are records; so are .json files if a field is given, or if they are
        JSON lines or an array whose first record has the field `text`; all others
        are text. Hidden files are ignored, and duplicates are read once.
      fields: the field of the text (default: `text`), or those of a prompt and its completion.

    A text file is one document. In a corpus of fewer than 100 files, a file with
    more than 1% of the text is cut into documents at line ends, so that a small
    share can be held out; so is any file of more than 4 MiB.

    Raises:
      ConfigError: the corpus does not exist, has no files, or lacks a field.
    """
    specs = (spec,) if isinstance(spec, str) else tuple(spec)
    special = [s for s in specs if s == "python-library" or s.startswith(("hf:", "generated:"))]
    if not special:
        return _open_files(specs, fields)
    if len(specs) > 1:
        raise ConfigError(
            f"--corpus {special[0]} is no file or folder: it cannot be combined with others. "
            "Prepare each separately, with one --tokenizer, and train on both as sources"
        )
    name, fields = special[0], fields or ("text",)
    if name.startswith("hf:"):
        parts = huggingface_parts(name, fields)
    else:
        parts = python_parts() if name == "python-library" else generated_parts(name)
    return Corpus(name, fields, tuple(parts))


def check_fields_used(corpus: Corpus) -> None:
    """Refuse explicit fields for a corpus in which no file has fields.

    Raises:
      ConfigError: all readable files are text.
    """
    others = {part.path for part in corpus.parts if part.kind not in RECORDS}
    others |= {each.key for each in corpus.skipped if each.reason == NOT_RECORDS}
    if others and all(part.path in others for part in corpus.parts):
        pairs = len(corpus.fields) > 1
        flag = f"--{'pairs' if pairs else 'field'} {' '.join(corpus.fields)}"
        raise ConfigError(
            f"{flag} applies to no file of corpus {corpus.name!r}: {len(others):,} {NOT_RECORDS}. "
            f"Name files of records{'' if pairs else ', or leave out --field'}"
        )


def _open_files(specs: Sequence[str], explicit_fields: tuple[str, ...]) -> Corpus:
    fields = explicit_fields or ("text",)
    parts: list[Part] = []
    skipped: list[Skipped] = []
    texts: list[tuple[str, str, int]] = []
    for key, path in _find(specs):
        try:
            result = _open_file(key, path, fields, bool(explicit_fields))
            if isinstance(result, Skipped):
                skipped.append(result)
            elif result is None:
                texts.append((key, path, os.path.getsize(path)))
            else:
                parts += result
        except OSError as error:
            skipped.append(Skipped(key, "unreadable", str(error.strerror or error)))
    _note_json([path for _, path, _ in texts])
    limit = PART_BYTES
    if len(texts) < 100:
        limit = min(limit, max(SMALLEST_CUT, sum(size for *_, size in texts) // 100))
    for key, path, size in texts:
        parts += split_file("text", path, key, size, limit)
    name = specs[0] if len(specs) == 1 else shlex.join(specs)
    return Corpus(name, fields, tuple(parts), tuple(skipped))


def _open_file(
    key: str, path: str, fields: tuple[str, ...], is_explicit: bool
) -> list[Part] | Skipped | None:
    """The parts of a file of records, the reason to skip it, or None for text."""
    status, ending = os.stat(path), os.path.splitext(path)[1].lower()
    if stat.S_ISDIR(status.st_mode):
        os.scandir(path).close()  # Raises OSError without permission.
        return Skipped(key, "link to a folder" if os.path.islink(path) else "folder")
    if not stat.S_ISREG(status.st_mode):
        return Skipped(key, "not a regular file")
    if ending in COMPRESSED:
        return Skipped(key, "compressed")
    if ending == ".parquet":
        return parquet_parts(path, key, fields)
    size = status.st_size
    if ending in _READERS:
        return [Part(ending, path, key, 0, size, size)]
    if ending in JSON and (kind := json_kind(path, size, fields, is_explicit)):
        return split_file(kind, path, key, size, PART_BYTES if kind == "jsonl" else size)
    if len(fields) > 1:
        return Skipped(key, NOT_RECORDS)
    if is_explicit and isinstance(first_record(path)[0], dict):
        raise ConfigError(
            f"{path} has JSON but would be read as text: with --field, records are in files "
            "ending in .jsonl, .ndjson, .json or .parquet. Rename it, or leave it out"
        )
    return None


def _note_json(texts: Sequence[str]) -> None:
    """Warn of JSON files that are read as text."""
    files = [path for path in texts if path.lower().endswith(".json")]
    if files:
        warnings.warn(
            f"{count_of(len(files), 'file')} ending in .json read as text, with its JSON syntax: "
            f"{files[0]}. If it has records, name the field of their text: --field NAME",
            stacklevel=4,
        )


def _find(specs: Sequence[str]) -> list[tuple[str, str]]:
    """Unique (key, path) of the files that match paths and globs, sorted by key."""
    matches: dict[str, tuple[str, str]] = {}
    for spec in specs:
        path = os.path.expanduser(spec)
        if os.path.isdir(path):
            files = list(walk(path))
            if len(specs) > 1:
                files = [(os.path.join(path, key), file) for key, file in files]
        elif os.path.lexists(path):
            files = [(os.path.basename(path) if len(specs) == 1 else path, path)]
        else:
            files = [(match, match) for match in glob.glob(path, recursive=True)]
            # `**` also matches the files in each folder.
            if "**" in path or all(os.path.isdir(match) for match, _ in files):
                files = [each for each in files if not os.path.isdir(each[1])]
        if not files:
            raise ConfigError(
                f"corpus {spec!r} has no files: no file, folder or glob of that name has any. "
                "Check the path"
            )
        for key, file in files:
            matches.setdefault(os.path.abspath(file), (key, file))
    return sorted(matches.values())


_READERS: dict[str, Callable[[Part, tuple[str, ...]], Iterator[Document | Skipped]]] = {
    "text": read_text,
    "jsonl": read_jsonl,
    "json": read_json,
    "parquet": read_parquet,
    "hf": read_huggingface,
    "python": read_python,
    "topics": read_topics,
    "generated": read_generated,
}
