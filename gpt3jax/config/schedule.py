"""The learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from gpt3jax.errors import check, check_choice, check_numbers

Decay = Literal["cosine", "linear", "1-sqrt"]
"""The paper's (Appendix B); a straight line; 1 minus the square root (arXiv 2405.18392)."""


@dataclass(frozen=True)
class Schedule:
    """Learning rate by tokens consumed: linear warm-up, constant, decay, constant.

    By default the paper's (Appendix B), a cosine that follows the warm-up at once. With a smaller
    `decay_fraction` it is WSD (warm-up, stable, decay; arXiv 2404.06395): until the decay begins,
    the rate does not depend on the length of the run.
    """

    peak_learning_rate: float
    warmup_tokens: int = 375_000_000
    decay_tokens: int = 260_000_000_000
    """Tokens, from the start of training, at which the decay reaches its floor."""
    final_fraction: float = 0.1
    """The floor, relative to the peak."""
    decay: Decay = "cosine"
    decay_fraction: float = 1.0
    """The last part of `decay_tokens` in which the rate decays; 1: from the warm-up on; 0: the
    rate stays at its peak."""

    def __post_init__(self) -> None:
        check_numbers(
            self, "schedule", peak_learning_rate=0, warmup_tokens=0, decay_tokens=0,
            final_fraction=0, decay_fraction=0,
        )  # fmt: skip
        check_choice("--schedule.decay", self.decay, get_args(Decay))
        check(
            self.decay_fraction <= 1,
            f"--schedule.decay-fraction is {self.decay_fraction}: it is a part of decay_tokens, at "
            "most 1. Lower it",
        )
        check(
            self.decay_tokens > self.warmup_tokens,
            f"--schedule.decay-tokens is {self.decay_tokens}, within the warm-up of "
            f"{self.warmup_tokens} tokens: it must be above it. Raise it",
        )

    @property
    def decay_from_tokens(self) -> int:
        """Tokens at which the decay begins."""
        return max(self.warmup_tokens, round(self.decay_tokens * (1 - self.decay_fraction)))
