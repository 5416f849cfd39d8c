"""The second reading of a corpus: documents to tokens to window files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from gpt3jax.data.census import bucket
from gpt3jax.data.corpus import Corpus
from gpt3jax.data.documents import Part, Skipped
from gpt3jax.data.manifest import TOKENIZER, Shard, Split, sha256
from gpt3jax.data.tokenizer import Tokenizer


class Job(NamedTuple):
    """What every process needs to encode its groups."""

    corpus: Corpus
    folder: Path
    context: int
    held_out: int
    """Documents in buckets below this are validation."""


class Encoded(NamedTuple):
    """One group: its training shard, the counts of its validation text, and a file of its tokens.

    The validation tokens of all groups become one shard: each group has so few
    that cutting them apart would lose a good part in tails.
    """

    train: Split
    validation: Counter
    validation_tokens: Path


def window_dtype(tokenizer: Tokenizer) -> np.dtype:
    """The little-endian integers that windows are stored as."""
    return np.dtype("<u2" if tokenizer.vocabulary <= 2**16 else "<u4")


def encode_group(job: Job, numbered: tuple[int, tuple[Part, ...]]) -> Encoded:
    """Write the training shard and the validation tokens of one group."""
    number, group = numbered
    tokenizer = Tokenizer.load(job.folder / TOKENIZER)
    shard = WindowWriter(job.folder / f"train-{number}", job.context, tokenizer)
    tokens = job.folder / f"validation-{number}.tokens"
    train, validation = Counter(), Counter()
    with open(tokens, "wb") as file:
        for item in (item for part in group for item in job.corpus.read(part)):
            if isinstance(item, Skipped):
                continue
            ids = tokenizer.encode(item.text)
            ids.append(tokenizer.end_of_text)
            stream = np.array(ids, window_dtype(tokenizer))
            held_out = bucket(item.key) < job.held_out
            counts = validation if held_out else train
            counts["documents"] += 1
            counts["invalid_utf8"] += item.replaced
            counts["bytes"] += len(item.text.encode())
            counts["tokens"] += len(ids)
            if held_out:
                stream.tofile(file)
            else:
                shard.add(stream)
    return Encoded(shard.close(train), validation, tokens)


def write_validation(job: Job, tokenizer: Tokenizer, groups: Iterable[Encoded]) -> Split:
    """Write the validation shard from the tokens of every group, and remove those."""
    shard = WindowWriter(job.folder / "validation", job.context, tokenizer)
    counts = Counter()
    for group in groups:
        shard.add(np.fromfile(group.validation_tokens, window_dtype(tokenizer)))
        group.validation_tokens.unlink()
        counts += group.validation
    return shard.close(counts)


class WindowWriter:
    """Cuts a stream of tokens into windows of context+1 and writes them to one file.

    Stored plain: decompression would be most of the cost of a read, and the bytes
    would change with the version of the library.
    """

    def __init__(self, path: Path, context: int, tokenizer: Tokenizer) -> None:
        self._path = path
        self._context = context
        # End-of-text comes first, so that the first token of all is predicted too.
        self._rest = np.array([tokenizer.end_of_text], window_dtype(tokenizer))
        self._writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        self._windows = 0

    def add(self, tokens: np.ndarray) -> None:
        """Append tokens [n] to the stream."""
        stream = np.concatenate([self._rest, tokens])
        whole = (len(stream) - 1) // self._context * self._context
        for start in range(0, whole, self._context):
            self._writer.write(stream[start : start + self._context + 1].tobytes())
        self._windows += whole // self._context
        self._rest = stream[whole:]

    def close(self, counts: Counter) -> Split:
        """Finish the file, or remove it if it holds no window.

        Raises:
          RuntimeError: not all windows reached the disk.
        """
        self._writer.close()
        shards = ()
        if self._windows:
            size = self._path.stat().st_size
            shards = (Shard(self._path.name, self._windows, size, sha256(self._path)),)
        else:
            self._path.unlink()
        names = ("documents", "invalid_utf8", "bytes", "tokens")
        totals = {name: counts[name] for name in names}
        return Split(**totals, dropped_tokens=len(self._rest) - 1, shards=shards)
