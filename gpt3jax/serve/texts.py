"""Data passed between requests and the thread that owns the device: jobs, rows, pieces of text."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.decoding.generator import TextStream
from gpt3jax.serve.api import Completion

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Scored:
    """A token of a text with its logprob."""

    token: int
    offset: int
    """Number of characters of the text before the token."""
    log_probability: float | None = None
    """Nats; None for the first token of a text."""
    best: tuple[tuple[int, float], ...] = ()
    """The most likely tokens at this position and their logprobs."""


@dataclass(frozen=True)
class Piece:
    """The text and tokens of a row since its previous piece."""

    index: int
    """Index of the row in its request."""
    text: str
    tokens: tuple[Scored, ...]
    written: int
    """Number of new tokens, including the one that ended the text."""
    finish: Finish | None


@dataclass(eq=False)
class Job:
    """A queued or active request."""

    asked: Completion
    deliver: Callable[[Piece | Exception], None]
    """Called from the owner's thread; must not block."""
    is_cancelled: bool = False


class Offsets:
    """Computes the character offset of each token; a partial character starts at the character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._characters = tokenizer, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> int:
        """Add a token; returns the offset of the character that its first byte belongs to."""
        raw = self._tokenizer.token_bytes(token)
        text = self._decoder.decode(raw[:1])
        ends_character = bool(raw) and not self._decoder.getstate()[0]
        offset = self._characters + len(text) - ends_character
        self._characters += len(text) + len(self._decoder.decode(raw[1:]))
        return offset

    def flush(self) -> None:
        """End a text; the next token starts a new character."""
        self._characters += len(self._decoder.decode(b"", final=True))
        self._decoder.reset()


@dataclass(eq=False)
class Row:
    """One sequence of a request."""

    job: Job
    index: int
    history: list[int]
    """Token ids of the prompt and the new tokens."""
    stream: TextStream
    offsets: Offsets
    filled: int = 0
    """Number of filled slots of the KV cache."""
    written: int = 0
    """Number of new tokens."""
    text: str = ""
    """Text that is not delivered yet."""
    tokens: list[Scored] = field(default_factory=list)
    """Tokens that are not delivered yet."""
    sent: int = 0
    """Number of characters delivered."""
    unsent: int = 0
    is_over: bool = False

    @property
    def sample(self) -> int:
        """Index of the sample among those of its prompt."""
        return self.index % self.job.asked.samples
