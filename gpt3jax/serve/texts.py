"""What goes between a request and the thread that owns the model: rows, pieces of their text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from gpt3jax.data.tokenizer import StreamDecoder
from gpt3jax.generate import TextStream
from gpt3jax.serve.api import Completion

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Scored:
    """A token of a text, and how likely the model found it."""

    token: int
    offset: int
    """Characters of the text before it."""
    log_probability: float | None = None
    """Nats; of the first token of a text, none."""
    best: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens in its place, with theirs."""


@dataclass(frozen=True)
class Piece:
    """What a row wrote since the last one."""

    index: int
    """Of the row in its request."""
    text: str
    tokens: tuple[Scored, ...]
    written: int
    """Tokens, the one that ended the text included."""
    finish: Finish | None


@dataclass(eq=False)
class Job:
    """A request on its way."""

    asked: Completion
    deliver: Callable[[Piece | Exception], None]
    """Called by the owner's thread: must only pass on."""
    is_cancelled: bool = False


@dataclass(eq=False)
class Row:
    """A text being written."""

    job: Job
    index: int
    history: list[int]
    """Token ids of its whole text."""
    stream: TextStream
    places: StreamDecoder
    """Counts the characters before each token."""
    characters: int = 0
    filled: int = 0
    """Slots of the cache."""
    written: int = 0
    text: str = ""
    """Not yet delivered, as are these."""
    tokens: list[Scored] = field(default_factory=list)
    unsent: int = 0
    is_over: bool = False

    @property
    def sample(self) -> int:
        """Which of its prompt's samples it is."""
        return self.index % self.job.asked.samples
