"""The first reading of a corpus: how much there is, and a sample of it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from gpt3jax.config import ConfigError
from gpt3jax.data.corpus import Corpus
from gpt3jax.data.documents import Part, Skipped, hash_key
from gpt3jax.data.tokenizer import SENTENCE

BUCKETS = 2**16
"""Documents are held out by the first 16 bits of their hash."""
HASHES = 2**64


@dataclass
class Census:
    """What a reading found."""

    documents: int = 0
    bytes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(BUCKETS, np.int64))
    """Of text, in the documents of each bucket."""
    skipped: Counter = dataclasses.field(default_factory=Counter)
    """What was left out, by reason."""
    detail: str = ""
    """About one of them."""
    sample: list[str] = dataclasses.field(default_factory=list)

    def held_out(self, fraction: float) -> int:
        """The buckets to hold out: those below this number have `fraction` of the bytes, or more.

        By bytes, because a few documents differ much in length.
        """
        if fraction == 0:
            return 0
        filled = np.cumsum(self.bytes)
        return int(np.searchsorted(filled, fraction * filled[-1])) + 1

    def skip(self, item: Skipped) -> None:
        """Count one that was left out."""
        self.skipped[item.reason] += 1
        self.detail = self.detail or item.detail


def bucket(key: str) -> int:
    """The bucket of a document, from its key alone."""
    return hash_key(key) * BUCKETS // HASHES


def take_census(corpus: Corpus, rate: float, group: tuple[Part, ...]) -> Census:
    """Read some parts; the sample is about a `rate` share of their text, drawn by hash."""
    census = Census()
    for item in (item for part in group for item in corpus.read(part)):
        if isinstance(item, Skipped):
            census.skip(item)
            continue
        census.documents += 1
        census.bytes[bucket(item.key)] += len(item.text.encode())
        for start in range(0, len(item.text) if rate else 0, SENTENCE):
            if hash_key(f"{item.key}#{start}") < rate * HASHES:
                census.sample.append(item.text[start : start + SENTENCE])
    return census


def merge(parts: Iterable[Census], corpus: Corpus) -> Census:
    """The census of all parts.

    Raises:
      ConfigError: there is no document in them.
    """
    total = Census()
    for item in corpus.skipped:
        total.skip(item)
    for part in parts:
        total.documents += part.documents
        total.bytes += part.bytes
        total.skipped += part.skipped
        total.detail = total.detail or part.detail
        total.sample += part.sample
    if total.documents == 0:
        reasons = ", ".join(f"{count} {reason}" for reason, count in total.skipped.most_common(3))
        detail = f" ({total.detail[:60]})" if total.detail else ""
        raise ConfigError(
            f"corpus {corpus.name!r} has no documents: {reasons or 'no rows'}{detail}. "
            "Check --corpus and --field"
        )
    return total
