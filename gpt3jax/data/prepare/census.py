"""The first pass over a corpus: its size, and a sample for the tokenizer."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gpt3jax.data.byte_level import END_OF_TEXT
from gpt3jax.data.corpora.documents import Part, Skipped, count_of, count_reasons, hash_key
from gpt3jax.data.corpora.open import Corpus
from gpt3jax.data.tokenizer import SAMPLE_BYTES, SENTENCE
from gpt3jax.errors import ConfigError

BUCKETS = 2**16
"""Documents are held out by the first 16 bits of the hash of their key."""
HASHES = 2**64


@dataclass
class Census:
    """Statistics of a corpus or a part of it."""

    documents: int = 0
    bytes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(BUCKETS, np.int64))
    """int64 [BUCKETS]: text of the documents in each bucket."""
    skipped: Counter = dataclasses.field(default_factory=Counter)
    """Number of skipped records, by reason."""
    detail: str = ""
    """The detail of one skipped record."""
    text: int = 0
    """Bytes of the text that is sampled."""
    special: Counter = dataclasses.field(default_factory=Counter)
    """For each special token, the number of documents that contain its name as text."""
    sample: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    """Pieces of text to train a tokenizer on, each with its hash."""

    @property
    def limit(self) -> float:
        """Hashes below this limit select a sample of `SAMPLE_BYTES` from the text so far.

        The limit decreases with the text, so the samples of parts contain that of their union.
        """
        return HASHES * SAMPLE_BYTES / max(1, self.text)

    def trim(self) -> None:
        """Drop pieces whose hashes are above the limit."""
        self.sample = [each for each in self.sample if each[0] < self.limit]

    def held_out(self, fraction: float) -> int:
        """Number of buckets to hold out, the first ones, for at least `fraction` of the bytes.

        Bytes rather than documents are counted, because documents differ in length.
        """
        if fraction == 0:
            return 0
        filled = np.cumsum(self.bytes)
        return int(np.searchsorted(filled, fraction * filled[-1])) + 1

    def tail(self, fraction: float) -> float:
        """The share to hold out of the end of documents if complete ones would be all the text.

        Otherwise 0. Only documents in the last held-out bucket are divided.
        """
        return 0.0 if self.bytes[self.held_out(fraction) :].any() else fraction

    def skip(self, item: Skipped) -> None:
        """Count a skipped record."""
        self.skipped[item.reason] += 1
        self.detail = self.detail or item.detail


def bucket(key: str) -> int:
    """The bucket of a document, which depends on its key only."""
    return hash_key(key) * BUCKETS // HASHES


def take_census(corpus: Corpus, special: Sequence[str] | None, group: tuple[Part, ...]) -> Census:
    """Read a group of parts, and count occurrences of a tokenizer's special tokens in the text.

    If `special` is None, the text is also sampled by hash, to train a tokenizer on.
    """
    census, is_sampled = Census(), special is None
    special = (END_OF_TEXT,) if special is None else special
    spelled = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
    for part in group:
        # For compatibility, skipped tables of the Python library count towards `text`.
        is_library = part.kind in ("python", "topics")
        census.text += part.bytes if is_library else 0
        for item in corpus.read(part):
            if isinstance(item, Skipped):
                census.skip(item)
                continue
            size = len(item.text.encode())
            census.documents += 1
            census.bytes[bucket(item.key)] += size
            census.special.update(set(spelled.findall(item.text) + spelled.findall(item.prompt)))
            census.text += 0 if is_library else size
            for start in range(0, len(item.text) if is_sampled else 0, SENTENCE):
                place = hash_key(f"{item.key}#{start}")
                if place < census.limit:
                    census.sample.append((place, item.text[start : start + SENTENCE]))
    census.trim()
    return census


def merge(parts: Iterable[Census], corpus: Corpus) -> Census:
    """Add the censuses of all groups.

    Raises:
      ConfigError: they have no documents.
    """
    total = Census()
    for item in corpus.skipped:
        total.skip(item)
    for part in parts:
        total.documents += part.documents
        total.bytes += part.bytes
        total.skipped += part.skipped
        total.detail = total.detail or part.detail
        total.special += part.special
        total.text += part.text
        total.sample += part.sample
        total.trim()
    if total.documents == 0:
        detail = f" ({total.detail[:60]})" if total.detail else ""
        raise ConfigError(
            f"corpus {corpus.name!r} has no documents: "
            f"{count_reasons(total.skipped) or 'no rows'}{detail}. Check --corpus and --field"
        )
    return total


def warn_of_special(special: Counter) -> None:
    """Warn of special tokens that a text contains by name, which are encoded as ordinary text."""
    if special:
        where = ", ".join(f"{t} in {count_of(n, 'document')}" for t, n in special.most_common())
        warnings.warn(
            f"special tokens are written in the text: {where}. They are encoded as ordinary text, "
            "as transformers does with split_special_tokens=True, and have no special meaning"
            f"{_SEPARATE if END_OF_TEXT in special else ''}",
            stacklevel=3,
        )


_SEPARATE = f". If {END_OF_TEXT} separates documents, put each in its own file or record"
