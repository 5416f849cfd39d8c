"""The ten arithmetic tasks of section 3.9.1, generated like the paper's released files.

Operands are uniform in [0, 10^digits), so shorter numbers occur, without leading
zeros; differences may be negative. Questions are distinct. The paper describes
one-digit composites as 6+(4*8); as in its files, the brackets are around the
first two operands, digits are from 1 to 9, and operators have spaces.

As in the files, a question begins with two newlines, and an answer with a space.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable

from gpt3jax.errors import ConfigError
from gpt3jax.evals.task import Example, Task

COUNT = 2000
"""Number of questions in a released file."""

Sampler = Callable[[random.Random], tuple[str, int]]
"""Returns a random expression and its value."""

_WORDS = {"addition": ("plus", operator.add), "subtraction": ("minus", operator.sub)}
_SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def _two_numbers(digits: int, word: str, apply: Callable[[int, int], int]) -> Sampler:
    def sample(rng: random.Random) -> tuple[str, int]:
        a, b = rng.randrange(10**digits), rng.randrange(10**digits)
        return f"{a} {word} {b}", apply(a, b)

    return sample


def _three_digits(rng: random.Random) -> tuple[str, int]:
    a, b, c = (rng.randint(1, 9) for _ in range(3))
    first, second = rng.choice(list(_SIGNS)), rng.choice(list(_SIGNS))
    value = _SIGNS[second](_SIGNS[first](a, b), c)
    return f"({a} {first} {b}) {second} {c}", value


_SAMPLERS: dict[str, tuple[Sampler, int]] = {
    f"{digits}_digit_{name}": (_two_numbers(number, *_WORDS[name]), 100**number)
    for number, digits in enumerate(("two", "three", "four", "five"), 2)
    for name in _WORDS
}
"""The sampler of each task, and the number of its distinct questions."""
_SAMPLERS["two_digit_multiplication"] = (_two_numbers(2, "times", operator.mul), 100**2)
_SAMPLERS["single_digit_three_ops"] = (_three_digits, 9**3 * len(_SIGNS) ** 2)

ARITHMETIC = tuple(_SAMPLERS)
"""Names of the tasks, as in the released files."""


def arithmetic(name: str, seed: int = 0, count: int = COUNT) -> Task:
    """An arithmetic task; it is a deterministic function of its arguments.

    Args:
      name: one of `ARITHMETIC`.
      seed: of the questions.
      count: number of questions, all distinct.

    Raises:
      ConfigError: there are fewer distinct questions.
    """
    sample, most = _SAMPLERS[name]
    if count > most:
        raise ConfigError(f"task {name} has {most:,} different questions, not {count:,}. Ask fewer")
    rng, examples = random.Random(f"{name}:{seed}"), {}
    while len(examples) < count:
        expression, value = sample(rng)
        context = f"\n\nQ: What is {expression}?\n\nA:"
        examples[context] = Example((context,), (f" {value}",))
    return Task(
        name, tuple(examples.values()), "exact match", few=50, paper=PAPER[name],
        source="Brown et al. 2020, section 3.9.1 and Table H.1; form of openai/gpt-3 data/",
    )  # fmt: skip


PAPER: dict[str, tuple[tuple[float, ...], ...]] = {
    "two_digit_addition": (
        (0.70, 0.65, 0.70, 0.85, 1.10, 2.54, 15.4, 76.9),
        (2.00, 0.55, 3.15, 4.00, 12.1, 19.6, 73.0, 99.6),
        (2.00, 4.10, 3.50, 4.50, 8.90, 11.9, 55.5, 100.0),
    ),
    "two_digit_subtraction": (
        (1.25, 1.25, 1.25, 1.25, 1.60, 7.60, 12.6, 58.0),
        (1.15, 0.95, 1.45, 1.95, 3.85, 11.5, 44.6, 86.4),
        (1.15, 1.45, 2.25, 2.70, 7.35, 13.6, 52.4, 98.9),
    ),
    "three_digit_addition": (
        (0.10, 0.10, 0.05, 0.10, 0.10, 0.25, 1.40, 34.2),
        (0.15, 0.00, 0.10, 0.30, 0.45, 0.95, 15.4, 65.5),
        (0.15, 0.45, 0.30, 0.55, 0.75, 0.90, 8.40, 80.4),
    ),
    "three_digit_subtraction": (
        (0.05, 0.05, 0.05, 0.05, 0.05, 0.45, 1.35, 48.3),
        (0.05, 0.15, 0.25, 0.30, 0.55, 1.60, 6.15, 78.7),
        (0.05, 0.10, 0.15, 0.35, 0.65, 1.05, 9.20, 94.2),
    ),
    "four_digit_addition": (
        (0.05, 0.05, 0.00, 0.00, 0.05, 0.05, 0.15, 4.00),
        (0.00, 0.00, 0.10, 0.00, 0.00, 0.10, 0.80, 14.0),
        (0.00, 0.05, 0.05, 0.00, 0.15, 0.15, 0.40, 25.5),
    ),
    "four_digit_subtraction": (
        (0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.10, 7.50),
        (0.00, 0.00, 0.00, 0.00, 0.05, 0.00, 0.50, 14.0),
        (0.00, 0.05, 0.00, 0.00, 0.10, 0.05, 0.40, 26.8),
    ),
    "five_digit_addition": (
        (0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.65),
        (0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.05, 3.45),
        (0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.05, 9.30),
    ),
    "five_digit_subtraction": (
        (0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.80),
        (0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.05, 3.75),
        (0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 9.90),
    ),
    "two_digit_multiplication": (
        (2.20, 2.25, 2.65, 2.10, 2.55, 5.80, 6.15, 19.8),
        (1.35, 2.35, 3.35, 2.35, 4.75, 9.15, 11.0, 27.4),
        (1.35, 2.90, 2.70, 2.85, 4.25, 6.10, 7.05, 29.2),
    ),
    "single_digit_three_ops": (
        (1.25, 2.95, 2.75, 0.05, 0.30, 2.35, 0.75, 9.75),
        (1.90, 2.80, 2.85, 3.65, 6.45, 9.15, 8.20, 14.3),
        (1.70, 2.15, 3.90, 5.75, 6.20, 7.60, 9.95, 21.3),
    ),
}
"""Table H.1: zero-, one- and few-shot, each of the eight sizes, in per cent."""
