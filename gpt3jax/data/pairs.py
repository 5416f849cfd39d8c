"""Pairs of prompt and completion, as windows in which only completions are learned.

A window says by itself which of its tokens are learned: one that is only read (of
a prompt, or padding) is stored as the complement ~id of its id, which is negative.
The loss counts the targets that are not. Pairs, each followed by end-of-text, are
packed whole; the first of a window begins at position 0, as when it is asked.
Between pairs there is no mask: a later one sees those before it (the paper's scheme).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from gpt3jax.data.tokenizer import END_OF_TEXT, Tokenizer


def pair_ids(prompt: str, learned: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """A pair as a window holds it: the prompt's ids, complemented, and those to be learned.

    Prompt and completion are encoded apart, as where a completion is generated or
    scored. An empty prompt is the token that starts a document, as in generation.
    """
    before = tokenizer.encode(prompt) or [tokenizer.end_of_text]
    return [*(~token for token in before), *learned]


class Packer:
    """Packs whole pairs into windows in their order; what is left of a window is padding."""

    dropped = 0
    """Nothing is cut."""

    def __init__(self, length: int, end_of_text: int, dtype: np.dtype) -> None:
        """`length` is a window's, context+1; no pair may be longer."""
        self._length, self._end = length, end_of_text
        self._window = np.array([], dtype)

    def add(self, tokens: np.ndarray) -> Iterator[np.ndarray]:
        """The windows that whole pairs [n] complete."""
        # Only a learned end-of-text ends a pair: no text encodes to it.
        for pair in np.split(tokens, np.flatnonzero(tokens == self._end) + 1)[:-1]:
            if len(self._window) + len(pair) > self._length:
                yield from self.rest()
            self._window = np.concatenate([self._window, pair])

    def rest(self) -> Iterator[np.ndarray]:
        """The window that is not full yet, padded, if it holds anything."""
        if len(self._window):
            room = self._length - len(self._window)
            yield np.pad(self._window, (0, room), constant_values=~self._end)
            self._window = self._window[:0]


def tokens_of(window: np.ndarray) -> np.ndarray:
    """The ids of a window, learned or not."""
    return np.where(window < 0, ~window, window)


def shown(window: np.ndarray, tokenizer: Tokenizer) -> str:
    """A window as text; what is read but not learned stands between [[ and ]].

    In a window of which all is learned, end-of-text is not shown.
    """
    if (window >= 0).all():
        return tokenizer.decode(window.tolist())
    end, text = tokenizer.end_of_text, ""
    filled = int(np.flatnonzero(window != ~end)[-1]) + 1

    def kind(token: int) -> tuple[bool, bool]:
        return token >= 0, token in (end, ~end)

    for (is_learned, is_end), run in itertools.groupby(window[:filled].tolist(), kind):
        ids = tokens_of(np.array(list(run))).tolist()
        piece = END_OF_TEXT * len(ids) if is_end else tokenizer.decode(ids)
        text += piece + "\n" * is_end if is_learned else f"[[{piece}]]"
    padding = len(window) - filled
    return f"{text}[[padding: {padding} tokens]]" if padding else text
