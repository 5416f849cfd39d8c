"""The training order: a pure function of (data, seed, index).

The loader is stateless. Sequence i of a run is `windows(...)[i]` on every host
and after every restart, for any number of hosts, devices and threads. Grain
shuffles, repeats, mixes and prefetches; it is imported lazily because its
import takes seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from gpt3jax.config import Data
from gpt3jax.data.manifest import Manifest, Shard, Split, load_manifest, prepare_again
from gpt3jax.data.pairs import tokens_of
from gpt3jax.errors import ConfigError
from gpt3jax.serde import short_hash

THREADS = 4
PREFETCH = 16
"""In microbatches."""


class Spans(Protocol):
    """An unbounded sequence of ranges of global sequence numbers."""

    def __getitem__(self, j: int) -> range: ...


class Place(NamedTuple):
    """The origin of a training window."""

    source: str
    epoch: int
    """Number of complete passes over the source before it."""
    window: int
    """Index in the concatenation of the source's shards."""


@dataclass(frozen=True)
class Windows:
    """The unbounded training order; `order[i]` is the window of global sequence i."""

    _splits: tuple[_Stored, ...]
    _places: Any
    """Grain MapDataset of integers (source, epoch, window)."""
    _skips: tuple[tuple[int, int], ...] = ()
    """(sequence, count): from this sequence on, `count` windows are skipped."""

    def __getitem__(self, i: int) -> np.ndarray:
        """Token ids, int32 [context+1]; ~id where a token is not a target of the loss.

        Raises:
          ConfigError: the stored window is damaged.
        """
        source, _, window = self._at(i)
        return self._splits[source][window]

    def locate(self, i: int) -> Place:
        """The stored window of global sequence i."""
        source, epoch, window = self._at(i)
        return Place(self._splits[source].name, epoch, window)

    def _at(self, i: int) -> tuple[int, int, int]:
        return self._places[i + sum(count for start, count in self._skips if start <= i)]


def identity(data: Data, seed: int, context: int) -> dict[str, Any]:
    """The JSON that determines the training order: runs with equal identities read the same data.

    Raises:
      ConfigError: a source is missing, or has another context than the model or another
        tokenizer than the first source.
    """
    manifests = _manifests(data, context)
    return {
        "tokenizer": manifests[0].tokenizer,
        "sources": [
            {"name": source.name, "weight": weight, "manifest": manifest.hash}
            for source, weight, manifest in zip(data.sources, _shares(data), manifests, strict=True)
        ],
        "context": context,
        "seed": seed,
    }


def epochs(data: Data, context: int, sequences: int) -> dict[str, float]:
    """How often each source is read by a run of that many windows, by name."""
    return {
        source.name: sequences * share / manifest.train_windows
        for source, share, manifest in zip(
            data.sources, _shares(data), _manifests(data, context), strict=True
        )
    }


def windows(data: Data, seed: int, context: int, skips: Sequence[tuple[int, int]] = ()) -> Windows:
    """The training order of a mixture.

    Every source is reshuffled in each epoch and gives each window once per
    epoch. Sources are interleaved in proportion to their weights; Grain rounds
    these, by at most 1% of the smallest.

    Args:
      data: the sources and their weights.
      seed: of the shuffles.
      context: of the model.
      skips: pairs (sequence, count): from that sequence on, `count` windows are skipped.

    Raises:
      ConfigError: as `identity`, or a shard is missing.
    """
    import grain

    splits, places = [], []
    for k, (source, manifest) in enumerate(
        zip(data.sources, _manifests(data, context), strict=True)
    ):
        split = _Stored(source.name, manifest, manifest.train)
        # With the name, so that sources of equal size are shuffled differently; Grain adds the
        # epoch.
        shuffle = int(short_hash([seed, source.name])[:8], 16)
        order = grain.MapDataset.range(len(split)).shuffle(seed=shuffle).repeat()
        splits.append(split)
        places.append(order.map_with_index(_place(k, len(split))))
    mixture = grain.MapDataset.mix(places, _shares(data))
    return Windows(tuple(splits), mixture, tuple(skips))


def _place(source: int, length: int):
    return lambda i, window: (source, i // length, int(window))


def batches(order: Windows, spans: Spans, rows: Iterable[int], length: int) -> Iterator[np.ndarray]:
    """An unbounded stream of microbatches, int32 [len(rows), length], prefetched by threads.

    Row r of element j is the global sequence `spans[j][r]`; rows past the end of the span are
    padding without targets. Closing or deleting the generator ends its threads.

    Args:
      order: the result of `windows`.
      spans: the global sequences of each microbatch.
      rows: the rows of each microbatch that this process reads.
      length: of a window, context+1.
    """
    import grain

    rows, padding = tuple(rows), np.full(length, ~0, np.int32)

    def read(j: int) -> np.ndarray:
        span = spans[j]
        return np.stack([order[span[row]] if row < len(span) else padding for row in rows])

    elements = grain.MapDataset.range(sys.maxsize).map(read)
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=PREFETCH)
    iterator = iter(elements.to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out windows of one or several sources."""

    windows: np.ndarray
    """int32 [B, context+1]; ~id where a token is not a target of the loss."""
    follows: np.ndarray
    """bool [B]: whether a window continues the text of the previous one."""
    available: int
    """Total number of held-out windows of the sources."""

    def __len__(self) -> int:
        return len(self.windows)


def held_out(data: Data, count: int, context: int) -> HeldOut:
    """The first held-out windows of each source, in proportion to the sources' weights.

    Args:
      data: the sources and their weights.
      count: number of windows, or 0 for all. The result has fewer where a source has less
        than its share.
      context: of the model.

    Raises:
      ConfigError: no source has held-out windows, or as `identity`.
    """
    manifests = _manifests(data, context)
    available = [manifest.validation_windows for manifest in manifests]
    if not sum(available):
        raise ConfigError(
            f"no validation windows in {', '.join(source.path for source in data.sources)}: "
            "nothing was held out. Prepare with --validation-fraction 0.01"
        )
    taken = available
    if 0 < count < sum(available):
        ends = np.rint(np.cumsum(_shares(data)) * count).astype(int)
        taken = np.minimum(available, np.diff(ends, prepend=0)).tolist()
    rows, follows = [], []
    for source, manifest, size in zip(data.sources, manifests, taken, strict=True):
        split = _Stored(source.name, manifest, manifest.validation) if size else ()
        rows += [split[i] for i in range(size)]
        firsts = np.cumsum([0] + [shard.windows for shard in manifest.validation.shards])
        # Pairs are never split across windows.
        follows.append(~np.isin(np.arange(size), firsts) & (not manifest.pairs))
    return HeldOut(np.stack(rows), np.concatenate(follows), sum(available))


def documents(path: str | Path) -> Iterator[list[int]]:
    """Token ids of each training document of a data folder, in the order of its shards.

    They lack the tokens that were dropped at the end of each shard.

    Raises:
      ConfigError: no such data, or a window is damaged.
    """
    manifest = load_manifest(path)
    # A window of text begins with the last token of the previous one, a window of pairs does not.
    first = 0 if manifest.dtype.startswith("<i") else 1
    for shard in manifest.train.shards:
        stored = _Stored(str(path), manifest, replace(manifest.train, shards=(shard,)))
        document: list[int] = []
        for i in range(len(stored)):
            for token in tokens_of(stored[i])[first:].tolist():
                if token != manifest.end_of_text:
                    document.append(token)
                elif document:
                    yield document
                    document = []
        if document:
            yield document


def _shares(data: Data) -> list[float]:
    total = sum(source.weight for source in data.sources)
    return [source.weight / total for source in data.sources]


def _manifests(data: Data, context: int) -> list[Manifest]:
    """The manifests of all sources, checked against each other and the model's context."""
    if not data.sources:
        raise ConfigError(
            "data has no sources: there is nothing to train on. Name one; to train an imported "
            "run, write an experiment with init_from"
        )
    first = load_manifest(data.sources[0].path, f" --context {context}")
    flags = f" --context {context} --tokenizer {first.folder}"
    manifests = [first, *(load_manifest(source.path, flags) for source in data.sources[1:])]
    for source, manifest in zip(data.sources, manifests, strict=True):
        if manifest.context != context:
            raise ConfigError(
                f"data {source.name!r} has windows of context {manifest.context}, the model "
                f"{context}: they must agree. {prepare_again(manifest, context, manifest.folder)}, "
                f"and name that folder, or --model.context {manifest.context}"
            )
        if manifest.tokenizer != first.tokenizer:
            raise ConfigError(
                f"data {source.name!r} has tokenizer {manifest.tokenizer}, but "
                f"{data.sources[0].name!r} has {first.tokenizer}: ids would not mean the same. "
                f"{prepare_again(manifest, context, first.folder)}, and name that folder"
            )
    return manifests


class _Stored:
    """The stored windows of one split of one source."""

    def __init__(self, name: str, manifest: Manifest, split: Split) -> None:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.name = name
        self._vocabulary = manifest.vocabulary
        self._dtype = np.dtype(manifest.dtype)
        self._length = manifest.context + 1
        files = [_open(name, manifest.folder, shard) for shard in split.shards]
        self._records = ArrayRecordDataSource(files)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> np.ndarray:
        """Window i, int32 [context+1]; raises ConfigError if it is damaged."""
        window = np.frombuffer(self._records[i], self._dtype)
        largest = tokens_of(window).max(initial=0)
        if len(window) != self._length or largest >= self._vocabulary:
            raise ConfigError(
                f"window {i} of data {self.name!r} is damaged: it has {len(window)} ids up to "
                f"{largest} (vocabulary {self._vocabulary}). Prepare it again"
            )
        return window.astype(np.int32)


def _open(name: str, folder: Path, shard: Shard) -> str:
    """A shard as array_record's path[first:stop]: given its length, it is opened lazily."""
    path = folder / shard.name
    if not path.is_file() or path.stat().st_size != shard.bytes:
        raise ConfigError(
            f"data {name!r} is incomplete: {path} is missing or has another size. "
            "Restore it, or prepare the data again"
        )
    return f"{path}[0:{shard.windows}]"
