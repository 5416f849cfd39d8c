"""Pairs of prompt and completion, packed into windows with a loss on completions only.

A window encodes its own loss mask: a token of a prompt, or padding, is stored as
the complement ~id, which is negative, and negative targets do not count in the
loss. Pairs, each followed by end-of-text, are packed without splitting; the first
pair of a window begins at position 0. As in the paper, attention is not masked
between the pairs of a window.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from gpt3jax.data.tokenizer import END_OF_TEXT, Tokenizer


def pair_ids(prompt: str, targets: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """A pair as stored: the complemented ids of the prompt, then the ids of the targets.

    Prompt and completion are encoded separately, as in generation and scoring. An
    empty prompt becomes end-of-text, as in generation.
    """
    prompt_ids = tokenizer.encode(prompt) or [tokenizer.end_of_text]
    return [*(~token for token in prompt_ids), *targets]


class Packer:
    """Packs complete pairs into windows in order, and pads each window."""

    dropped = 0
    """Tokens that were dropped: none."""

    def __init__(self, length: int, end_of_text: int, dtype: np.dtype) -> None:
        """`length` is that of a window, context+1; no pair may be longer."""
        self._length, self._end = length, end_of_text
        self._window = np.array([], dtype)

    def add(self, tokens: np.ndarray) -> Iterator[np.ndarray]:
        """Append complete pairs, int [n]; yield the windows that they fill."""
        # Only the end-of-text that ends a pair is non-negative: no text encodes to it.
        for pair in np.split(tokens, np.flatnonzero(tokens == self._end) + 1)[:-1]:
            if len(self._window) + len(pair) > self._length:
                yield from self.rest()
            self._window = np.concatenate([self._window, pair])

    def rest(self) -> Iterator[np.ndarray]:
        """Yield the last, incomplete window, padded, unless it is empty."""
        if len(self._window):
            room = self._length - len(self._window)
            yield np.pad(self._window, (0, room), constant_values=~self._end)
            self._window = self._window[:0]


def tokens_of(window: np.ndarray) -> np.ndarray:
    """The token ids of a window, without the loss mask."""
    return np.where(window < 0, ~window, window)


def shown(window: np.ndarray, tokenizer: Tokenizer) -> str:
    """A window as text, with tokens that are not targets between [[ and ]].

    In a window in which all tokens are targets, end-of-text is not shown.
    """
    if (window >= 0).all():
        return tokenizer.decode(window.tolist())
    end, text = tokenizer.end_of_text, ""
    filled = int(np.flatnonzero(window != ~end)[-1]) + 1

    def kind(token: int) -> tuple[bool, bool]:
        return token >= 0, token in (end, ~end)

    for (is_target, is_end), run in itertools.groupby(window[:filled].tolist(), kind):
        ids = tokens_of(np.array(list(run))).tolist()
        piece = END_OF_TEXT * len(ids) if is_end else tokenizer.decode(ids)
        text += piece + "\n" * is_end if is_target else f"[[{piece}]]"
    padding = len(window) - filled
    return f"{text}[[padding: {padding} tokens]]" if padding else text
