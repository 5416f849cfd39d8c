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
from gpt3jax.evals.tasks.table_h1 import PAPER

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
