"""Tasks: examples, demonstrations, and the metric of answers.

The paper (section 2.4) has three kinds. A generated text is compared with the
accepted answers; several completions of one context are compared by likelihood
(multiple choice); or one completion of several contexts (partial evaluation:
Winograd, Winogrande).

This module imports neither jax nor numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gpt3jax.errors import ConfigError

Metric = Literal["exact match", "F1", "choice"]
Normalise = Literal["none", "token", "character", "answer context"]
"""Normalisation of a candidate's log-likelihood: none; per token (the paper's default); per
character; or less its log-likelihood after `answer_context` (the paper's rule for ARC, OpenBookQA
and RACE)."""


@dataclass(frozen=True)
class Example:
    """A question and its candidate answers.

    As in the paper's released files, prompts are plain concatenations: a context
    begins with its separator, and a completion with a space.
    """

    contexts: tuple[str, ...]
    """A single one, or one per candidate for partial evaluation."""
    completions: tuple[str, ...]
    """The candidates; the accepted answers if generated; a single one for partial evaluation."""
    truth: int = 0
    """Index of the right candidate, or of the accepted answer that a demonstration shows."""
    group: str = ""
    """Demonstrations are sampled from the same group: one rule, one passage, one vocabulary."""

    def __post_init__(self) -> None:
        if not (
            self.contexts and self.completions and 1 in (len(self.contexts), len(self.completions))
        ):
            raise ConfigError(
                f"an example has {len(self.contexts)} contexts and {len(self.completions)} "
                "completions: one of the two must be single. Correct it"
            )
        if not 0 <= self.truth < max(len(self.contexts), len(self.completions)):
            raise ConfigError(
                f"an example's truth is {self.truth}: it has no such candidate. Correct it"
            )
        if not all(self.completions):
            raise ConfigError("an example has an empty completion: nothing to score. Leave it out")

    @property
    def candidates(self) -> list[tuple[str, str]]:
        """(context, completion) of each candidate."""
        # One of the two is single.
        return [(context, text) for context in self.contexts for text in self.completions]

    @property
    def shown(self) -> str:
        """The example as a demonstration: with its right answer."""
        return "".join(self.candidates[self.truth])


@dataclass(frozen=True)
class Task:
    """A set of examples, and how they are evaluated."""

    name: str
    examples: tuple[Example, ...]
    metric: Metric
    few: int
    """Number of demonstrations of the few-shot setting (K), if they fit the context."""
    demonstrations: tuple[Example, ...] = ()
    """The pool of demonstrations; if empty, the other `examples`."""
    description: str = ""
    """An instruction at the beginning of every prompt."""
    normalise: Normalise = "token"
    """For the metric `choice`."""
    answer_context: str = "Answer: "
    """The context of the unconditional likelihood."""
    stop: str = "\n"
    """Ends a generated answer."""
    chance: float | None = None
    """Expected score of guessing, if it is not 1 / candidates."""
    check: Callable[[str, str], Mapping[str, bool]] | None = None
    """Additional named checks of a generated answer, for example that it parses; called with the
    stripped answer and the stripped expected one."""
    paper: tuple[tuple[float, ...], ...] = ()
    """Table H.1: zero-, one- and few-shot, each of the eight sizes, in per cent."""
    source: str = ""
    """Source of the format and the numbers."""

    def __post_init__(self) -> None:
        if not self.examples:
            raise ConfigError(f"task {self.name!r} has no examples: nothing to evaluate. Add some")
        if self.metric != "choice" and any(len(each.contexts) > 1 for each in self.examples):
            raise ConfigError(
                f"task {self.name!r} has several contexts for a completion, and the metric "
                f"{self.metric!r}: only a choice compares contexts. Make it a choice"
            )
        if not self.stop:
            raise ConfigError(f"task {self.name!r} has an empty stop: answers never end. Name one")

    def prompt(self, demonstrations: Sequence[Example], context: str) -> str:
        """The text of the prompt."""
        return self.description + "".join(each.shown for each in demonstrations) + context


def exact_match(text: str, accepted: Sequence[str]) -> float:
    """1 if the stripped text equals an accepted answer, else 0."""
    return float(text.strip() in {each.strip() for each in accepted})


def f1(text: str, accepted: Sequence[str]) -> float:
    """F1 of words with the closest accepted answer: harmonic mean of precision and recall."""
    return max(_f1(text.lower().split(), each.lower().split()) for each in accepted)


def _f1(words: list[str], truth: list[str]) -> float:
    common = sum(min(words.count(word), truth.count(word)) for word in set(words))
    if not common:
        return float(words == truth)
    return 2 * common / (len(words) + len(truth))
