"""Pad and pack token ids of many lengths into arrays of a few shapes. Does not import jax.

Legend: B prompts, T slots, Q slots of a prompt after the shared prefix, P tokens of that prefix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

Tokens = tuple[int, ...]
Pair = tuple[Tokens, Tokens]
"""A prompt and a completion."""

SMALLEST = 64
"""Minimum slots of a prompt; compiling for fewer takes longer than reading the padding."""


Packed = tuple[np.ndarray, np.ndarray, dict[int, tuple[int, int]]]
"""Complete texts packed into rows: their tokens, int32 [B, T]; the position of each token in its
text, int32 [B, T], 0 for padding; and from the index of a text to its row and first slot."""


def bucket(size: int, least: int = 1) -> int:
    """The smallest power of two that is at least `size`, or `least` if that is larger."""
    return max(least, 1 << (size - 1).bit_length())


def common_prefix(texts: Sequence[Tokens]) -> Tokens:
    """The longest common proper prefix of all texts; empty if there is only one text."""
    if len(texts) < 2:
        return ()
    first, last = min(texts), max(texts)
    most = min(map(len, texts)) - 1
    size = next(
        (n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first)
    )
    return first[: min(size, most)]


def batches(prompts: Sequence[Tokens], most: int, multiple: int) -> Iterator[list[int]]:
    """Indices of prompts in batches of similar length, longest first.

    Args:
      prompts: token ids.
      most: maximum slots of a batch.
      multiple: the rows of a batch are a multiple of this.
    """
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    while order:
        size = bucket(len(prompts[order[0]]), SMALLEST)
        rows = max(1, most // (size * multiple)) * multiple
        yield order[:rows]
        order = order[rows:]


def pad_prompts(
    prompts: Sequence[Tokens], shared: Tokens, context: int, most: int, multiple: int
) -> list[np.ndarray]:
    """Pad a batch of `batches` on the right, to its full number of rows.

    Returns:
      Inputs of `decode.prefill`: tokens, int32 [B, T], and the length of each prompt, int32 [B],
      1 for rows that only fill the batch. If the prefix `shared` of all prompts is worth a separate
      program: the tokens after it, int32 [B, Q], and their lengths; the prefix, int32 [1, P], and
      its length.
    """
    longest = max(map(len, prompts))
    size = bucket(longest, SMALLEST)
    rows = max(1, most // (size * multiple)) * multiple
    rest = bucket(longest - len(shared), SMALLEST)
    if 2 * rest > size:  # The prefix is too short to be worth a separate program.
        shared = ()
    tokens = np.zeros((rows, rest if shared else min(size, context)), np.int32)
    length = np.ones(rows, np.int32)
    for row, prompt in enumerate(prompts):
        own = prompt[len(shared) :]
        tokens[row, : len(own)], length[row] = own, len(own)
    if not shared:
        return [tokens, length]
    prefix = np.zeros((1, min(bucket(len(shared), SMALLEST), context)), np.int32)
    prefix[0, : len(shared)] = shared
    return [tokens, length, prefix, np.asarray(len(shared), np.int32)]


def pack(texts: Sequence[Tokens], context: int, most: int, multiple: int) -> Iterator[Packed]:
    """Pack texts into rows by first fit in order of decreasing length.

    Args:
      texts: texts of at most `context` + 1 tokens.
      context: maximum row length minus one; rows are shorter if the texts fit into less.
      most: maximum slots of a batch.
      multiple: the rows of a batch are a multiple of this.
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
        tokens, positions = np.zeros((rows, size), np.int32), np.zeros((rows, size), np.int32)
        where = {}
        for row, numbers in enumerate(bins[first : first + rows]):
            start = 0
            for number in numbers:
                stop = start + len(texts[number])
                tokens[row, start:stop] = texts[number]
                positions[row, start:stop] = np.arange(stop - start)
                where[number] = (row, start)
                start = stop
        yield tokens, positions, where
