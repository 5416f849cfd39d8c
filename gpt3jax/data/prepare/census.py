"""The first reading of a corpus: how much there is, and a sample of it."""

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
    text: int = 0
    """Bytes of text that the sample is a share of."""
    special: Counter = dataclasses.field(default_factory=Counter)
    """Documents in which a special token of the tokenizer is written out."""
    sample: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    """Stretches of text for a tokenizer to learn from, each with its hash."""

    @property
    def limit(self) -> float:
        """Hashes below this belong to a sample of `SAMPLE_BYTES`, as far as the text is known.

        It falls as more text is found, so nothing is missing from the sample of the whole.
        """
        return HASHES * SAMPLE_BYTES / max(1, self.text)

    def trim(self) -> None:
        """Reduce the sample to its share of the text."""
        self.sample = [each for each in self.sample if each[0] < self.limit]

    def held_out(self, fraction: float) -> int:
        """The buckets to hold out: those below this number have `fraction` of the bytes, or more.

        By bytes, because a few documents differ much in length.
        """
        if fraction == 0:
            return 0
        filled = np.cumsum(self.bytes)
        return int(np.searchsorted(filled, fraction * filled[-1])) + 1

    def tail(self, fraction: float) -> float:
        """The share to hold out of the end of documents, where whole ones would be all the text.

        It is 0 elsewhere. Then only documents in the last bucket to hold out are divided.
        """
        return 0.0 if self.bytes[self.held_out(fraction) :].any() else fraction

    def skip(self, item: Skipped) -> None:
        """Count one that was left out."""
        self.skipped[item.reason] += 1
        self.detail = self.detail or item.detail


def bucket(key: str) -> int:
    """The bucket of a document, from its key alone."""
    return hash_key(key) * BUCKETS // HASHES


def take_census(corpus: Corpus, special: Sequence[str] | None, group: tuple[Part, ...]) -> Census:
    """Read some parts, looking for the special tokens of a tokenizer.

    If there is none yet, a sample of their text is drawn by hash for it to be trained on.
    """
    census, is_sampled = Census(), special is None
    special = (END_OF_TEXT,) if special is None else special
    spelled = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
    for part in group:
        # Of the Python library, tables that are left out count too, as they always did.
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


def warn_of_special(found: Counter) -> None:
    """Say which special tokens a text has written out, and that they are text like any other."""
    if found:
        where = ", ".join(f"{t} in {count_of(n, 'document')}" for t, n in found.most_common())
        warnings.warn(
            f"special tokens are written in the text: {where}. There they are encoded letter by "
            "letter, as transformers does with split_special_tokens=True, and end or mark nothing"
            f"{_SEPARATE if END_OF_TEXT in found else ''}",
            stacklevel=3,
        )


_SEPARATE = f". If {END_OF_TEXT} separates documents, give each a file or record of its own"
