"""What goes between a request and the thread that owns the model: rows, pieces of their text."""

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


class Offsets:
    """Where each token of a text begins: a part of a character, where that character does."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._characters = tokenizer, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> int:
        """Characters of the text before the one that the token's first byte belongs to."""
        spelled = self._tokenizer.token_bytes(token)
        text = self._decoder.decode(spelled[:1])
        ends_character = bool(spelled) and not self._decoder.getstate()[0]
        offset = self._characters + len(text) - ends_character
        self._characters += len(text) + len(self._decoder.decode(spelled[1:]))
        return offset

    def flush(self) -> None:
        """What follows is another text, after the end of this one."""
        self._characters += len(self._decoder.decode(b"", final=True))
        self._decoder.reset()


@dataclass(eq=False)
class Row:
    """A text being written."""

    job: Job
    index: int
    history: list[int]
    """Token ids of its whole text."""
    stream: TextStream
    offsets: Offsets
    filled: int = 0
    """Slots of the cache."""
    written: int = 0
    text: str = ""
    """Not yet delivered, as are these."""
    tokens: list[Scored] = field(default_factory=list)
    sent: int = 0
    """Characters delivered."""
    unsent: int = 0
    is_over: bool = False

    @property
    def sample(self) -> int:
        """Which of its prompt's samples it is."""
        return self.index % self.job.asked.samples
