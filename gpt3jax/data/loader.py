"""Windows in the order of training: a pure function of (data, seed, index).

Nothing here has a position. Sequence i of a run is `windows(...)[i]` on every
host and after every restart; how many hosts, devices or threads there are does
not enter. Grain shuffles, repeats, mixes and prefetches; it is imported where it
is used, because it takes seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpt3jax.config import ConfigError, Data, short_hash
from gpt3jax.data.manifest import Manifest, Shard, Split, load_manifest
from gpt3jax.data.pairs import tokens_of

THREADS = 4
PREFETCH = 16
"""Microbatches read ahead."""


class Place(NamedTuple):
    """Where one training window comes from."""

    source: str
    epoch: int
    """How many times all of the source came before."""
    window: int
    """Index in the source's shards, in their order."""


@dataclass(frozen=True)
class Windows:
    """The endless training order; `order[i]` is the window of global sequence i."""

    _splits: tuple[_Stored, ...]
    _places: Any
    """Grain's MapDataset of (source, epoch, window), all integers."""
    _skips: tuple[tuple[int, int], ...] = ()
    """From which sequence on how many places are passed over."""

    def __getitem__(self, i: int) -> np.ndarray:
        """Token ids, int32 [context+1]; ~id where one is read but not learned.

        Raises:
          ConfigError: the stored window is damaged.
        """
        source, _, window = self._at(i)
        return self._splits[source].read(window)

    def locate(self, i: int) -> Place:
        """Which stored window global sequence i is."""
        source, epoch, window = self._at(i)
        return Place(self._splits[source].name, epoch, window)

    def _at(self, i: int) -> tuple[int, int, int]:
        return self._places[i + sum(count for start, count in self._skips if start <= i)]


def identity(data: Data, seed: int, context: int) -> dict[str, Any]:
    """What decides the training order, as JSON: two runs that agree read the same windows.

    Raises:
      ConfigError: a source is missing, was cut for another context, or has
        another tokenizer than the first.
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


def windows(data: Data, seed: int, context: int, skips: Sequence[tuple[int, int]] = ()) -> Windows:
    """The training order of a mixture; `skips` are (from which sequence on, how many windows).

    Every source is shuffled anew in each epoch and gives each window once per
    epoch. Sources alternate so that any stretch holds their shares; Grain
    rounds them, by at most 1% of the smallest.

    Raises:
      ConfigError: as `identity`; or a shard is missing.
    """
    import grain

    splits, places = [], []
    for k, (source, manifest) in enumerate(
        zip(data.sources, _manifests(data, context), strict=True)
    ):
        split = _Stored(source.name, manifest, manifest.train)
        # By name, or sources of one size would be shuffled alike; Grain adds the epoch.
        shuffle = int(short_hash([seed, source.name])[:8], 16)
        order = grain.MapDataset.range(len(split)).shuffle(seed=shuffle).repeat()
        splits.append(split)
        places.append(order.map_with_index(_place(k, len(split))))
    mixture = grain.MapDataset.mix(places, _shares(data))
    return Windows(tuple(splits), mixture, tuple(skips))


def _place(source: int, length: int):
    return lambda i, window: (source, i // length, int(window))


def batches(
    order: Sequence[np.ndarray], *, start: int, microbatch: int, rows: Iterable[int]
) -> Iterator[np.ndarray]:
    """Endless microbatches, int32 [len(rows), context+1], read ahead by threads.

    Element j holds global sequences `start + j * microbatch + rows`. Close the
    generator, or let it go, to end its threads.

    Args:
      order: what `windows` gives.
      start: sequences already consumed.
      microbatch: sequences that all processes consume together per element.
      rows: the ones of each microbatch that this process reads.
    """
    import grain

    rows = tuple(rows)

    def read(j: int) -> np.ndarray:
        return np.stack([order[start + j * microbatch + row] for row in rows])

    steps = grain.MapDataset.range((sys.maxsize - start) // microbatch).map(read)
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=PREFETCH)
    iterator = iter(steps.to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()


def validation_windows(data: Data, count: int, context: int) -> np.ndarray:
    """The first held-out windows of each source, in proportion to its share.

    Returns:
      int32 [n, context+1], the same each time; n is below `count` where a source
      has held out less than its share of it.

    Raises:
      ConfigError: no source has any; or as `identity`.
    """
    shares = np.array(_shares(data))
    ends = np.rint(np.cumsum(shares) * count).astype(int)
    found = []
    for source, manifest, wanted in zip(
        data.sources, _manifests(data, context), np.diff(ends, prepend=0), strict=True
    ):
        if manifest.validation_windows:
            split = _Stored(source.name, manifest, manifest.validation)
            found += [split.read(i) for i in range(min(int(wanted), len(split)))]
    if not found:
        raise ConfigError(
            f"no validation windows in {', '.join(source.path for source in data.sources)}: "
            "nothing was held out. Prepare with --validation-fraction 0.01"
        )
    return np.stack(found)


def documents(path: str | Path) -> Iterator[list[int]]:
    """Token ids of a data folder's training documents, in the order of its shards.

    The text that was dropped at the end of a shard is not among them.

    Raises:
      ConfigError: no such data, or a window is damaged.
    """
    manifest = load_manifest(path)
    # Of text, a window begins with the last token of the one before; of pairs, with a pair.
    first = 0 if manifest.dtype.startswith("<i") else 1
    for shard in manifest.train.shards:
        stored = _Stored(str(path), manifest, replace(manifest.train, shards=(shard,)))
        document: list[int] = []
        for i in range(len(stored)):
            for token in tokens_of(stored.read(i))[first:].tolist():
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
    """The manifests of all sources, which agree with each other and the model."""
    if not data.sources:
        raise ConfigError(
            "data has no sources: there is nothing to train on. Name one; of an imported run, "
            "in an experiment whose init_from it is"
        )
    manifests = [load_manifest(source.path) for source in data.sources]
    first = manifests[0]
    for source, manifest in zip(data.sources, manifests, strict=True):
        if manifest.context != context:
            raise ConfigError(
                f"data {source.name!r} has windows of context {manifest.context}, the model "
                f"{context}: they must agree. gpt3jax data prepare --corpus {manifest.corpus} "
                f"--context {context}, or --model.context {manifest.context}"
            )
        if manifest.tokenizer != first.tokenizer:
            raise ConfigError(
                f"data {source.name!r} has tokenizer {manifest.tokenizer}, but "
                f"{data.sources[0].name!r} has {first.tokenizer}: ids would not mean the same. "
                f"Prepare it with --tokenizer {first.folder}/tokenizer.model"
            )
    return manifests


class _File(NamedTuple):
    """A shard as array_record's FileInstruction; with its length known, it opens at first use."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


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

    def read(self, i: int) -> np.ndarray:
        """Window i, int32 [context+1], checked."""
        window = np.frombuffer(self._records[i], self._dtype)
        largest = tokens_of(window).max(initial=0)
        if len(window) != self._length or largest >= self._vocabulary:
            raise ConfigError(
                f"window {i} of data {self.name!r} is damaged: it has {len(window)} ids up to "
                f"{largest} (vocabulary {self._vocabulary}). Prepare it again"
            )
        return window.astype(np.int32)


def _open(name: str, folder: Path, shard: Shard) -> _File:
    path = folder / shard.name
    if not path.is_file() or path.stat().st_size != shard.bytes:
        raise ConfigError(
            f"data {name!r} is incomplete: {path} is missing or has another size. "
            "Restore it, or prepare the data again"
        )
    return _File(str(path), 0, shard.windows, shard.windows)
