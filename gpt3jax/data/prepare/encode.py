"""The second reading of a corpus: documents to tokens to window files."""

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
from gpt3jax.data.tokenizer import Tokenizer

TOO_LONG = "longer than the context"
"""Why a pair is left out: it is never cut."""


class Job(NamedTuple):
    """What every process needs to encode its groups."""

    corpus: Corpus
    folder: Path
    context: int
    held_out: int
    """Documents in buckets below this are validation."""
    tail: float = 0.0
    """Unless 0, of documents in the last of these buckets only the end is, this share of it."""

    @property
    def has_pairs(self) -> bool:
        """Whether documents are pairs of a prompt and its completion."""
        return len(self.corpus.fields) > 1


class Encoded(NamedTuple):
    """One group: its training shard, the counts of its validation text, and a file of its tokens.

    What was left out is counted by reason.

    The validation tokens of all groups become one shard: each group has so few
    that cutting them apart would lose a good part in tails.
    """

    train: Split
    validation: Counter
    validation_tokens: Path
    skipped: Counter


def window_dtype(tokenizer: Tokenizer, has_pairs: bool) -> np.dtype:
    """The little-endian integers that windows are stored as; signed where some are not learned."""
    if has_pairs:
        return np.dtype("<i2" if tokenizer.vocabulary <= 2**15 else "<i4")
    return np.dtype("<u2" if tokenizer.vocabulary <= 2**16 else "<u4")


def encode_group(job: Job, numbered: tuple[int, tuple[Part, ...]]) -> Encoded:
    """Write the training shard and the validation tokens of one group."""
    number, group = numbered
    tokenizer = Tokenizer.load(job.folder / TOKENIZER)
    dtype = window_dtype(tokenizer, job.has_pairs)
    shard = WindowWriter(job.folder / f"train-{number}", job, tokenizer)
    tokens = job.folder / f"validation-{number}.tokens"
    train, validation, skipped = Counter(), Counter(), Counter()
    with open(tokens, "wb") as file:
        for item in (item for part in group for item in job.corpus.read(part)):
            if isinstance(item, Skipped):
                continue
            learned = [*tokenizer.encode(item.text), tokenizer.end_of_text]
            ids = pair_ids(item.prompt, learned, tokenizer) if job.has_pairs else learned
            if job.has_pairs and len(ids) > job.context + 1:
                skipped[TOO_LONG] += 1
                continue
            held_out = _held_out(job, item.key, len(learned))
            kept = learned[: len(learned) - held_out]
            size = len(item.text.encode())
            kept_bytes = sum(len(tokenizer.token_bytes(t)) for t in kept) if held_out else size
            counts = train if kept else validation
            counts["documents"] += 1
            counts["invalid_utf8"] += item.replaced
            train.update(bytes=kept_bytes, tokens=len(kept))
            validation.update(bytes=size - kept_bytes, tokens=held_out)
            border = len(ids) - held_out if kept else 0
            shard.add(np.array(ids[:border], dtype))
            np.array(ids[border:], dtype).tofile(file)
    return Encoded(shard.close(train), validation, tokens, skipped)


def _held_out(job: Job, key: str, tokens: int) -> int:
    """How many of a document's last tokens are held out: none, all, or whole windows of them."""
    place = bucket(key)
    if job.tail and place == job.held_out - 1:
        windows = math.ceil(job.tail * tokens / job.context)
        return min(windows * job.context, tokens)
    return tokens if place < job.held_out else 0


def write_validation(job: Job, tokenizer: Tokenizer, groups: Iterable[Encoded]) -> Split:
    """Write the validation shard from the tokens of every group, and remove those."""
    shard = WindowWriter(job.folder / "validation", job, tokenizer)
    dtype = window_dtype(tokenizer, job.has_pairs)
    counts = Counter()
    for group in groups:
        shard.add(np.fromfile(group.validation_tokens, dtype))
        group.validation_tokens.unlink()
        counts += group.validation
    return shard.close(counts)


class WindowWriter:
    """Writes a stream of tokens to one file, as windows of context+1.

    Text is cut into them, and pairs are packed. Stored plain: decompression would
    be most of the cost of a read, and the bytes would change with the version of the
    library.
    """

    def __init__(self, path: Path, job: Job, tokenizer: Tokenizer) -> None:
        self._path = path
        end, dtype = tokenizer.end_of_text, window_dtype(tokenizer, job.has_pairs)
        self._shaper = (Packer if job.has_pairs else Cutter)(job.context + 1, end, dtype)
        self._writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        self._windows = 0

    def add(self, tokens: np.ndarray) -> None:
        """Append tokens [n] to the stream; of pairs, whole ones."""
        self._write(self._shaper.add(tokens))

    def close(self, counts: Counter) -> Split:
        """Finish the file, or remove it if it holds no window.

        Raises:
          RuntimeError: not all windows reached the disk.
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
    """Cuts text into windows that begin with the last token of the one before."""

    def __init__(self, length: int, end_of_text: int, dtype: np.dtype) -> None:
        self._context = length - 1
        # End-of-text comes first, so that the first token of all is predicted too.
        self._rest = np.array([end_of_text], dtype)

    @property
    def dropped(self) -> int:
        """Tokens of the tail that is shorter than a window."""
        return len(self._rest) - 1

    def add(self, tokens: np.ndarray) -> Iterator[np.ndarray]:
        """The windows that tokens [n] complete."""
        stream = np.concatenate([self._rest, tokens])
        whole = (len(stream) - 1) // self._context * self._context
        self._rest = stream[whole:]
        for start in range(0, whole, self._context):
            yield stream[start : start + self._context + 1]

    def rest(self) -> Iterator[np.ndarray]:
        """No more: the tail is dropped."""
        return iter(())
