"""Tasks whose answer only the demonstrations tell, for models that train in minutes.

The paper's Figure 1.2 in miniature. Nothing that such a model could have stored
helps: each example is a group of its own, with a mapping or a rule of its own,
over names that the training text never shows in a pattern.

    substitution     ka bo te mi              the partner that a name has in this group
    hidden_rule      ka bo te mi => te mi     one of four rules, at work on two names

A name is two syllables. A third of all names is held out: those that
`is_held_out` says. Training text has the others in patterns, and all of them in
lists where nothing repeats, so that what is new of a held-out name is not that
it stands there but that something follows from it. Everything is set off by
spaces, so that a tokenizer makes the same token of a syllable wherever it stands.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from gpt3jax.data.corpora.documents import hash_key
from gpt3jax.evals.task import Example, Task

SYLLABLES = tuple(first + last for first in "bkmt" for last in "aeiou")
NAMES = tuple(f"{one} {two}" for one in SYLLABLES for two in SYLLABLES if one != two)
"""380, each of two different syllables."""

PAIRS = 4
"""Names with a partner, in a group of `substitution`."""
FEW = 16
"""Demonstrations that a group has."""
SHORTEST, LONGEST = 8, 20
"""Lines of a training document."""

Names = tuple[str, ...]

RULES: dict[str, Callable[[Names], Names]] = {
    "copy": lambda names: names,
    "swap": lambda names: names[::-1],
    "first": lambda names: names[:1],
    "last": lambda names: names[1:],
}
"""Of two different names, no two give the same."""


def is_held_out(name: str) -> bool:
    """Whether a name is kept for evaluation: by its hash, a third of all that there can be."""
    return hash_key(name) % 3 == 0


HELD_OUT = tuple(name for name in NAMES if is_held_out(name))
TRAINING = tuple(name for name in NAMES if not is_held_out(name))


def substitution(seed: int = 0, count: int = 500, names: Sequence[str] = HELD_OUT) -> Task:
    """Names with partners, at random in each group: which is this one's?

    Of the 16 demonstrations of a group each pair is 4, so K of them show the pair
    that is asked with probability 1 - C(12, K) / C(16, K). Who has not seen it can
    only guess a name: one in 380. Who knows the form and no more takes one of the
    four partners that were shown.

    Args:
      seed: of groups and what is asked.
      count: groups, each of which asks once.
      names: to draw from.
    """
    return _task("substitution", _pairs, seed, count, names, chance=1 / PAIRS)


def hidden_rule(seed: int = 0, count: int = 500, names: Sequence[str] = HELD_OUT) -> Task:
    """A rule at work on two names, shown by demonstrations alone: which of `RULES`?

    Args:
      seed: of rules and names.
      count: groups, each of which asks once.
      names: to draw from.
    """
    return _task("hidden_rule", _rule, seed, count, names, chance=1 / len(RULES))


PATTERNS = {"substitution": substitution, "hidden_rule": hidden_rule}


def documents(seed: int, count: int) -> Iterator[str]:
    """Training text: patterns over names that are not held out, and lists of all names.

    Args:
      seed: of all that is drawn.
      count: documents: of five two show a mapping, two a rule, and one is a list of
        different names, two in a line as in a mapping.
    """
    draw = random.Random(f"documents:{seed}")
    for number in range(count):
        lines = draw.randint(SHORTEST, LONGEST)
        if number % 5 == 4:
            shown = _new_pairs(draw, NAMES, lines)
        else:
            shown = (_pairs, _rule)[number % 2](draw, TRAINING, lines)
        yield "".join(line.shown for line in shown)


def _task(
    task: str,
    pattern: Callable[[random.Random, Sequence[str], int], list[Example]],
    seed: int,
    count: int,
    names: Sequence[str],
    chance: float,
) -> Task:
    draw, asked, demonstrations = random.Random(f"{task}:{seed}"), [], []
    for group in range(count):
        query, *shown = (
            Example(line.contexts, line.completions, group=str(group))
            for line in pattern(draw, names, FEW + 1)
        )
        asked.append(query)
        demonstrations += shown
    return Task(
        task, tuple(asked), "exact match", FEW, tuple(demonstrations), stop=" \n", chance=chance,
        source="gpt3jax: names held out of the patterns in training text",
    )  # fmt: skip


def _line(given: Sequence[str], answer: Sequence[str]) -> Example:
    return Example((f" \n {' '.join(given)}",), (f" {' '.join(answer)}",))


def _new_pairs(draw: random.Random, names: Sequence[str], lines: int) -> list[Example]:
    """Lines of two names, of which none comes twice."""
    drawn = draw.sample(names, 2 * lines)
    return [_line([key], [value]) for key, value in zip(drawn[::2], drawn[1::2], strict=True)]


def _pairs(draw: random.Random, names: Sequence[str], lines: int) -> list[Example]:
    """One of the pairs at random, and then all of them in turn, shuffled."""
    pairs = _new_pairs(draw, names, PAIRS)
    rest = [pairs[number % PAIRS] for number in range(lines - 1)]
    draw.shuffle(rest)
    return [draw.choice(pairs), *rest]


def _rule(draw: random.Random, names: Sequence[str], lines: int) -> list[Example]:
    rule = RULES[draw.choice(list(RULES))]
    drawn = (tuple(draw.sample(names, 2)) for _ in range(lines))
    return [_line([*given, "=>"], rule(given)) for given in drawn]
