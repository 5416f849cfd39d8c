"""In-context learning tasks for models that train in minutes: the paper's Figure 1.2 in miniature.

Answers can be inferred from the demonstrations only, not from parameters: each
example has its own group of demonstrations, with its own mapping or rule, over
names that never occur in a pattern of the training text.

    substitution     ka bo te mi              the partner that a name has in this group
    hidden_rule      ka bo te mi => te mi     one of four rules, applied to two names

A name consists of two syllables. A third of the names is held out (`is_held_out`).
The training text has patterns of the other names, and lists of all names without
repetition, so that held-out names are not unseen tokens but unseen in patterns.
Spaces surround all syllables, so that each has the same tokens everywhere.
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
"""Pairs of names in a group of `substitution`."""
FEW = 16
"""Demonstrations in a group."""
SHORTEST, LONGEST = 8, 20
"""Minimum and maximum lines of a training document."""

Names = tuple[str, ...]

RULES: dict[str, Callable[[Names], Names]] = {
    "copy": lambda names: names,
    "swap": lambda names: names[::-1],
    "first": lambda names: names[:1],
    "last": lambda names: names[1:],
}
"""For two different names, all four results differ."""


def is_held_out(name: str) -> bool:
    """Whether a name is reserved for evaluation: a third are, by hash."""
    return hash_key(name) % 3 == 0


HELD_OUT = tuple(name for name in NAMES if is_held_out(name))
TRAINING = tuple(name for name in NAMES if not is_held_out(name))


def substitution(seed: int = 0, count: int = 500, names: Sequence[str] = HELD_OUT) -> Task:
    """The task to complete a pair of names; each group has random pairs.

    Each of the four pairs is in 4 of a group's 16 demonstrations, so K of them show
    the pair of the question with probability 1 - C(12, K) / C(16, K). Otherwise the
    answer is one of 380 names. Guessing among the four partners is right in a
    quarter of cases.

    Args:
      seed: of the groups and questions.
      count: number of groups, each with one question.
      names: to sample from.
    """
    return _task("substitution", _pairs, seed, count, names, chance=1 / PAIRS)


def hidden_rule(seed: int = 0, count: int = 500, names: Sequence[str] = HELD_OUT) -> Task:
    """The task to apply one of `RULES`, which the demonstrations show, to two names.

    Args:
      seed: of the rules and names.
      count: number of groups, each with one question.
      names: to sample from.
    """
    return _task("hidden_rule", _rule, seed, count, names, chance=1 / len(RULES))


PATTERNS = {"substitution": substitution, "hidden_rule": hidden_rule}


def documents(seed: int, count: int) -> Iterator[str]:
    """Training text: patterns of names that are not held out, and lists of all names.

    Args:
      seed: of the random generator.
      count: number of documents; two in five show a mapping, two a rule, and one is a
        list of distinct names, two per line as in a mapping.
    """
    rng = random.Random(f"documents:{seed}")
    for number in range(count):
        lines = rng.randint(SHORTEST, LONGEST)
        if number % 5 == 4:
            examples = _new_pairs(rng, NAMES, lines)
        else:
            examples = (_pairs, _rule)[number % 2](rng, TRAINING, lines)
        yield "".join(example.shown for example in examples)


def _task(
    task: str,
    pattern: Callable[[random.Random, Sequence[str], int], list[Example]],
    seed: int,
    count: int,
    names: Sequence[str],
    chance: float,
) -> Task:
    rng, questions, demonstrations = random.Random(f"{task}:{seed}"), [], []
    for group in range(count):
        question, *others = (
            Example(line.contexts, line.completions, group=str(group))
            for line in pattern(rng, names, FEW + 1)
        )
        questions.append(question)
        demonstrations += others
    return Task(
        name=task,
        examples=tuple(questions),
        metric="exact match",
        few=FEW,
        demonstrations=tuple(demonstrations),
        stop=" \n",
        chance=chance,
        source="gpt3jax: names held out of the patterns in training text",
    )


def _line(given: Sequence[str], answer: Sequence[str]) -> Example:
    return Example((f" \n {' '.join(given)}",), (f" {' '.join(answer)}",))


def _new_pairs(rng: random.Random, names: Sequence[str], lines: int) -> list[Example]:
    """Lines of two names, all distinct."""
    sample = rng.sample(names, 2 * lines)
    return [_line([key], [value]) for key, value in zip(sample[::2], sample[1::2], strict=True)]


def _pairs(rng: random.Random, names: Sequence[str], lines: int) -> list[Example]:
    """A random pair, then equal numbers of all pairs, shuffled."""
    pairs = _new_pairs(rng, names, PAIRS)
    rest = [pairs[number % PAIRS] for number in range(lines - 1)]
    rng.shuffle(rest)
    return [rng.choice(pairs), *rest]


def _rule(rng: random.Random, names: Sequence[str], lines: int) -> list[Example]:
    """Applications of one random rule to random names."""
    rule = RULES[rng.choice(list(RULES))]
    samples = (tuple(rng.sample(names, 2)) for _ in range(lines))
    return [_line([*given, "=>"], rule(given)) for given in samples]
