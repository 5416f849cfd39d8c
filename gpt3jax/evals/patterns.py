"""Tasks whose answer only the demonstrations tell, for models that train in minutes.

The paper's Figure 1.2 in miniature. Nothing that such a model could have stored
helps: each example is a group of its own, with a mapping or a rule of its own,
over symbols that the training text never shows in a pattern.

    substitution     bako => tide          the partner that a symbol has in this group
    hidden_rule      lavu pote => pote lavu     one of four rules, at work

Symbols are words of which a third is held out: those that `is_held_out` names.
Training text has the others in patterns and, as any text does, all of them in
other places. Everything is set off by spaces, so that a tokenizer makes the
same token of a word wherever it stands.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from gpt3jax.data.documents import hash_key
from gpt3jax.evals.task import Example, Task

SYLLABLES = tuple(first + last for first in "bdklmnpt" for last in "aeiou")
SYMBOLS = tuple(f"{one} {two}" for one in SYLLABLES for two in SYLLABLES if one != two)
"""Names of two different syllables: 4,160."""

PAIRS = 4
"""Symbols with a partner, in a group of `substitution`."""
FEW = 16
"""Demonstrations that a group has."""
LONGEST = 20
"""Lines of a training document, at most; its pattern's shortest is `SHORTEST`."""
SHORTEST = 8

Words = tuple[str, ...]

RULES: dict[str, Callable[[Words], Words]] = {
    "copy": lambda words: words,
    "swap": lambda words: words[::-1],
    "first": lambda words: words[:1],
    "last": lambda words: words[1:],
}
"""Of two different symbols, no two give the same."""


def is_held_out(symbol: str) -> bool:
    """Whether a symbol is kept for evaluation: by its hash, a third of all that there can be."""
    return hash_key(symbol) % 3 == 0


HELD_OUT = tuple(symbol for symbol in SYMBOLS if is_held_out(symbol))
TRAINING = tuple(symbol for symbol in SYMBOLS if not is_held_out(symbol))


def substitution(seed: int = 0, count: int = 500, symbols: Sequence[str] = HELD_OUT) -> Task:
    """Symbols with partners, at random in each group: which is this one's?

    Of the 16 demonstrations of a group each pair is 4, so K of them show the pair
    that is asked with probability 1 - C(12, K) / C(16, K): nobody can score more.

    Args:
      seed: of groups and what is asked.
      count: groups, each of which asks once.
      symbols: to draw from.
    """
    return _task("substitution", _pairs, seed, count, symbols, chance=1 / PAIRS)


def hidden_rule(seed: int = 0, count: int = 500, symbols: Sequence[str] = HELD_OUT) -> Task:
    """A rule at work on two symbols, shown by demonstrations alone: which of `RULES`?

    Args:
      seed: of rules and symbols.
      count: groups, each of which asks once.
      symbols: to draw from.
    """
    return _task("hidden_rule", _rule, seed, count, symbols, chance=1 / len(RULES))


PATTERNS = {"substitution": substitution, "hidden_rule": hidden_rule}


def documents(seed: int, count: int) -> Iterator[str]:
    """Training text: documents of one pattern each, over symbols that are not held out.

    Args:
      seed: of all that is drawn.
      count: documents, half of each pattern.
    """
    draw = random.Random(f"documents:{seed}")
    for number in range(count):
        pattern = (_pairs, _rule)[number % 2]
        lines = pattern(draw, TRAINING, draw.randint(SHORTEST, LONGEST))
        yield "".join(line.shown for line in lines)


def _task(
    name: str,
    pattern: Callable[[random.Random, Sequence[str], int], list[Example]],
    seed: int,
    count: int,
    symbols: Sequence[str],
    chance: float,
) -> Task:
    draw, asked, demonstrations = random.Random(f"{name}:{seed}"), [], []
    for group in range(count):
        query, *shown = (
            Example(line.contexts, line.completions, group=str(group))
            for line in pattern(draw, symbols, FEW + 1)
        )
        asked.append(query)
        demonstrations += shown
    return Task(
        name, tuple(asked), "exact match", FEW, tuple(demonstrations), chance=chance,
        source="gpt3jax: symbols held out of training patterns",
    )  # fmt: skip


def _line(words: Sequence[str], answer: Sequence[str]) -> Example:
    return Example((f" \n {' '.join(words)}",), (f" {' '.join(answer)}",))


def _pairs(draw: random.Random, symbols: Sequence[str], lines: int) -> list[Example]:
    """One of the pairs at random, and then all of them in turn, shuffled."""
    drawn = draw.sample(symbols, 2 * PAIRS)
    pairs = [_line([key], [value]) for key, value in zip(drawn[::2], drawn[1::2], strict=True)]
    rest = [pairs[number % PAIRS] for number in range(lines - 1)]
    draw.shuffle(rest)
    return [draw.choice(pairs), *rest]


def _rule(draw: random.Random, symbols: Sequence[str], lines: int) -> list[Example]:
    rule = RULES[draw.choice(list(RULES))]
    drawn = (tuple(draw.sample(symbols, 2)) for _ in range(lines))
    return [_line([*words, "=>"], rule(words)) for words in drawn]
