"""Batch token ids of many lengths into arrays of a few shapes; without jax.

Legend: B prompts, T slots, Q slots of the part in which prompts differ, P tokens
of their common prefix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

Tokens = tuple[int, ...]
Pair = tuple[Tokens, Tokens]
"""A prompt and a completion."""

SMALLEST = 64
"""Minimum slots of a prompt: compiling for fewer would cost more than the padding."""


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts, padded on the right, as `decode.prefill` reads them."""

    tokens: np.ndarray
    """int32 [B, T]; or [B, Q], what follows the shared beginning."""
    length: np.ndarray
    """int32 [B], tokens of each row; rows that only fill the batch have one."""
    shared: np.ndarray | None
    """int32 [1, P], the beginning that all prompts share, padded, if it is read separately."""
    shared_length: int

    @property
    def rows(self) -> int:
        """B, with the rows that only fill the batch."""
        return len(self.length)

    def arrays(self) -> tuple[np.ndarray, ...]:
        """Tokens and lengths; and, where there is one, the shared beginning and its length."""
        if self.shared is None:
            return self.tokens, self.length
        return self.tokens, self.length, self.shared, np.int32(self.shared_length)


@dataclass(frozen=True)
class Packed:
    """Complete texts, several to a row."""

    rows: np.ndarray
    """int32 [B, T]."""
    places: np.ndarray
    """int32 [B, T]: the position of each token in its text, 0 for padding."""
    where: dict[int, tuple[int, int]]
    """For each text, by index, its row and the slot of its first token."""


def bucket(size: int, least: int = 1) -> int:
    """The smallest power of two that is at least `size`, but not less than `least`."""
    return max(least, 1 << (size - 1).bit_length())


def common_beginning(texts: Sequence[Tokens]) -> Tokens:
    """The longest common prefix that is shorter than every text; () for a single text."""
    if len(texts) < 2:
        return ()
    first, last = min(texts), max(texts)
    most = min(map(len, texts)) - 1
    size = next(
        (n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first)
    )
    return first[: min(size, most)]


def batches(prompts: Sequence[Tokens], most: int, multiple: int) -> Iterator[list[int]]:
    """Yield batches of indices of prompts, grouped by length, longest first.

    Args:
      prompts: token ids.
      most: maximum slots of a batch.
      multiple: of which the number of rows must be a multiple.
    """
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    while order:
        size = bucket(len(prompts[order[0]]), SMALLEST)
        rows = max(1, most // (size * multiple)) * multiple
        yield order[:rows]
        order = order[rows:]


def pad_prompts(
    prompts: Sequence[Tokens], shared: Tokens, context: int, most: int, multiple: int
) -> Prompts:
    """A batch of `batches`: as many rows as fit, whether there are prompts for all or not."""
    longest = max(map(len, prompts))
    size = bucket(longest, SMALLEST)
    rows = max(1, most // (size * multiple)) * multiple
    rest = bucket(longest - len(shared), SMALLEST)
    if 2 * rest > size:  # Too little is shared to be worth a program of its own.
        shared = ()
    tokens = np.zeros((rows, rest if shared else min(size, context)), np.int32)
    length = np.ones(rows, np.int32)
    for row, prompt in enumerate(prompts):
        own = prompt[len(shared) :]
        tokens[row, : len(own)], length[row] = own, len(own)
    if not shared:
        return Prompts(tokens, length, None, 0)
    beginning = np.zeros((1, min(bucket(len(shared), SMALLEST), context)), np.int32)
    beginning[0, : len(shared)] = shared
    return Prompts(tokens, length, beginning, len(shared))


def pack(texts: Sequence[Tokens], context: int, most: int, multiple: int) -> Iterator[Packed]:
    """Pack texts into rows by first-fit decreasing, and yield batches of rows.

    Args:
      texts: of at most `context` + 1 tokens.
      context: of the model; rows have at most one token more.
      most: maximum slots of a batch.
      multiple: of which the number of rows must be a multiple.
    """
    order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
    total = sum(map(len, texts))
    size = min(context, bucket(max(len(texts[order[0]]) - 1, total // multiple), SMALLEST)) + 1
    bins: list[list[int]] = []
    room: list[int] = []
    for number in order:
        fit = next((n for n, left in enumerate(room) if left >= len(texts[number])), None)
        if fit is None:
            bins.append([])
            room.append(size)
            fit = len(bins) - 1
        bins[fit].append(number)
        room[fit] -= len(texts[number])
    rows = max(1, min(most // size, len(bins)) // multiple) * multiple
    for first in range(0, len(bins), rows):
        yield _filled(texts, bins[first : first + rows], rows, size)


def _filled(texts: Sequence[Tokens], bins: list[list[int]], rows: int, size: int) -> Packed:
    tokens, places = np.zeros((rows, size), np.int32), np.zeros((rows, size), np.int32)
    where = {}
    for row, numbers in enumerate(bins):
        start = 0
        for number in numbers:
            stop = start + len(texts[number])
            tokens[row, start:stop] = texts[number]
            places[row, start:stop] = np.arange(stop - start)
            where[number] = (row, start)
            start = stop
    return Packed(tokens, places, where)
