"""The second pass over a corpus: documents to tokens to shards of windows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from gpt3jax.data.corpora.documents import Part, Skipped
from gpt3jax.data.corpora.open import Corpus
from gpt3jax.data.manifest import TOKENIZER, Shard, Split, sha256
from gpt3jax.data.pairs import Packer, pair_ids
from gpt3jax.data.prepare.census import bucket
from gpt3jax.data.prepare.pieces import Group, tokens_name
from gpt3jax.data.tokenizer import Tokenizer

TOO_LONG = "longer than the context"
"""Reason for skipping a pair: pairs are never cut."""


class Job(NamedTuple):
    """The settings that every worker needs to encode its groups."""

    corpus: Corpus
    folder: Path
    context: int
    held_out: int
    """Documents in buckets below this number are held out."""
    tail: float = 0.0
    """If not 0, this share of the end of documents in the last held-out bucket is held out."""

    @property
    def has_pairs(self) -> bool:
        """Whether documents are pairs of a prompt and its completion."""
        return len(self.corpus.fields) > 1


def window_dtype(tokenizer: Tokenizer, has_pairs: bool) -> np.dtype:
    """The little-endian dtype of stored windows, which is signed for pairs."""
    if has_pairs:
        return np.dtype("<i2" if tokenizer.vocabulary <= 2**15 else "<i4")
    return np.dtype("<u2" if tokenizer.vocabulary <= 2**16 else "<u4")


def encode_group(job: Job, numbered: tuple[int, tuple[Part, ...]]) -> Group:
    """Write the training shard and the validation tokens of a numbered group."""
    number, group = numbered
    tokenizer = Tokenizer.load(job.folder / TOKENIZER)
    dtype = window_dtype(tokenizer, job.has_pairs)
    shard = WindowWriter(job.folder / f"train-{number}", job, tokenizer)
    tokens = job.folder / tokens_name(number)
    train, validation, skipped = Counter(), Counter(), Counter()
    with open(tokens, "wb") as file:
        for item in (item for part in group for item in job.corpus.read(part)):
            if isinstance(item, Skipped):
                continue
            targets = [*tokenizer.encode(item.text), tokenizer.end_of_text]
            ids = pair_ids(item.prompt, targets, tokenizer) if job.has_pairs else targets
            if job.has_pairs and len(ids) > job.context + 1:
                skipped[TOO_LONG] += 1
                continue
            held_out = _held_out(job, item.key, len(targets))
            trained = targets[: len(targets) - held_out]
            size = len(item.text.encode())
            train_bytes = sum(len(tokenizer.token_bytes(t)) for t in trained) if held_out else size
            counts = train if trained else validation
            counts["documents"] += 1
            counts["invalid_utf8"] += item.replaced
            train.update(bytes=train_bytes, tokens=len(trained))
            validation.update(bytes=size - train_bytes, tokens=held_out)
            border = len(ids) - held_out if trained else 0
            shard.add(np.array(ids[:border], dtype))
            np.array(ids[border:], dtype).tofile(file)
    split = shard.close(train)
    return Group(number, split, dict(validation), sha256(tokens), dict(skipped))


def _held_out(job: Job, key: str, tokens: int) -> int:
    """Number of a document's last tokens to hold out: 0, all, or a multiple of the context."""
    index = bucket(key)
    if job.tail and index == job.held_out - 1:
        windows = math.ceil(job.tail * tokens / job.context)
        return min(windows * job.context, tokens)
    return tokens if index < job.held_out else 0


def write_validation(job: Job, tokenizer: Tokenizer, groups: Iterable[Group]) -> Split:
    """Write the validation shard from the token files of all groups, and remove these."""
    shard = WindowWriter(job.folder / "validation", job, tokenizer)
    dtype = window_dtype(tokenizer, job.has_pairs)
    counts = Counter()
    for group in groups:
        tokens = job.folder / tokens_name(group.number)
        shard.add(np.fromfile(tokens, dtype))
        tokens.unlink()
        counts.update(group.validation)
    return shard.close(counts)


class WindowWriter:
    """Writes a stream of tokens to a shard, as windows of context+1 tokens.

    Text is cut, and pairs are packed. Shards are not compressed: decompression
    would dominate the cost of a read, and the bytes would depend on the version
    of the library.
    """

    def __init__(self, path: Path, job: Job, tokenizer: Tokenizer) -> None:
        self._path = path
        end, dtype = tokenizer.end_of_text, window_dtype(tokenizer, job.has_pairs)
        self._shaper = (Packer if job.has_pairs else Cutter)(job.context + 1, end, dtype)
        self._writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        self._windows = 0

    def add(self, tokens: np.ndarray) -> None:
        """Append tokens [n] to the stream; pairs must be complete."""
        self._write(self._shaper.add(tokens))

    def close(self, counts: Counter) -> Split:
        """Finish the file, or remove it if it has no windows.

        Raises:
          RuntimeError: the file could not be written.
        """
        self._write(self._shaper.rest())
        self._writer.close()
        shards = ()
        if self._windows:
            size = self._path.stat().st_size
            shards = (Shard(self._path.name, self._windows, size, sha256(self._path)),)
        else:
            self._path.unlink()
        names = ("documents", "invalid_utf8", "bytes", "tokens")
        totals = {name: counts[name] for name in names}
        return Split(**totals, dropped_tokens=self._shaper.dropped, shards=shards)

    def _write(self, windows: Iterable[np.ndarray]) -> None:
        for window in windows:
            self._writer.write(window.tobytes())
            self._windows += 1


class Cutter:
    """Cuts text into windows that begin with the last token of the previous one."""

    def __init__(self, length: int, end_of_text: int, dtype: np.dtype) -> None:
        self._context = length - 1
        # A leading end-of-text, so that the first token is a target too.
        self._rest = np.array([end_of_text], dtype)

    @property
    def dropped(self) -> int:
        """Number of trailing tokens that do not fill a window."""
        return len(self._rest) - 1

    def add(self, tokens: np.ndarray) -> Iterator[np.ndarray]:
        """Append tokens [n]; yield the windows that they fill."""
        stream = np.concatenate([self._rest, tokens])
        stop = (len(stream) - 1) // self._context * self._context
        self._rest = stream[stop:]
        for start in range(0, stop, self._context):
            yield stream[start : start + self._context + 1]

    def rest(self) -> Iterator[np.ndarray]:
        """No windows: the trailing tokens are dropped."""
        return iter(())
