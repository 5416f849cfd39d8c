"""What a task is: examples, where demonstrations come from, and how an answer is judged.

Section 2.4 of the paper describes three ways to ask. A text is generated and
compared with the answers accepted; several completions of one context are
compared by their likelihood (multiple choice); or one completion is, after
several contexts (partial evaluation: Winograd, Winogrande).

Importing this file imports neither jax nor numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gpt3jax.errors import ConfigError

Metric = Literal["exact match", "F1", "choice"]
Normalise = Literal["none", "token", "character", "answer context"]
"""What a candidate's log-likelihood is divided by, or compared with: nothing; its tokens (the
paper's rule); its characters; its own likelihood after `answer_context` alone (the paper's rule
for ARC, OpenBookQA and RACE)."""


@dataclass(frozen=True)
class Example:
    """One question with what may follow it.

    As in the paper's released files, the text put before a model is a plain
    concatenation: a context brings its own separator from what precedes it, and a
    completion its own leading space.
    """

    contexts: tuple[str, ...]
    """One; or as many as there are candidates, for partial evaluation."""
    completions: tuple[str, ...]
    """The candidates; of a generated answer, all that are accepted; one for partial evaluation."""
    truth: int = 0
    """Which candidate is right; of accepted answers, the one that a demonstration shows."""
    group: str = ""
    """Demonstrations are drawn from the same group: one rule, one passage, one vocabulary."""

    def __post_init__(self) -> None:
        if not (
            self.contexts and self.completions and 1 in (len(self.contexts), len(self.completions))
        ):
            raise ConfigError(
                f"an example has {len(self.contexts)} contexts and {len(self.completions)} "
                "completions: one of the two is single. Mend it"
            )
        if not 0 <= self.truth < max(len(self.contexts), len(self.completions)):
            raise ConfigError(
                f"an example's truth is {self.truth}: it has no such candidate. Mend it"
            )
        if not all(self.completions):
            raise ConfigError("an example has an empty completion: nothing to score. Leave it out")

    @property
    def candidates(self) -> list[tuple[str, str]]:
        """(context, completion) of each candidate."""
        if len(self.contexts) > 1:
            return [(context, self.completions[0]) for context in self.contexts]
        return [(self.contexts[0], completion) for completion in self.completions]

    @property
    def shown(self) -> str:
        """The example as a demonstration: with its right answer."""
        return "".join(self.candidates[self.truth])


@dataclass(frozen=True)
class Task:
    """Examples to be asked, and everything about how."""

    name: str
    examples: tuple[Example, ...]
    metric: Metric
    few: int
    """Demonstrations of the few-shot setting (K), if they fit the context."""
    demonstrations: tuple[Example, ...] = ()
    """Where they are drawn from; empty: from `examples`, but for the one that is asked."""
    description: str = ""
    """In natural language, before everything; all that the zero-shot setting has."""
    normalise: Normalise = "token"
    """Of a choice."""
    answer_context: str = "Answer: "
    """What an unconditional likelihood is conditioned on."""
    stop: str = "\n"
    """Ends a generated answer."""
    chance: float | None = None
    """Score of guessing, if it is not one in the number of candidates."""
    check: Callable[[str, str], Mapping[str, bool]] | None = None
    """What else is said of a generated answer, by name, of it and the one expected, without the
    space around them: that it parses, say."""
    paper: tuple[tuple[float, ...], ...] = ()
    """Table H.1: zero-, one- and few-shot, each of the eight sizes, in per cent."""
    source: str = ""
    """Where format and numbers come from."""

    def __post_init__(self) -> None:
        if not self.examples:
            raise ConfigError(f"task {self.name!r} has no examples: nothing to ask. Add some")
        if self.metric != "choice" and any(len(each.contexts) > 1 for each in self.examples):
            raise ConfigError(
                f"task {self.name!r} has several contexts for a completion, and the metric "
                f"{self.metric!r}: only a choice compares contexts. Make it a choice"
            )
        if not self.stop:
            raise ConfigError(f"task {self.name!r} has an empty stop: answers never end. Name one")

    def prompt(self, demonstrations: Sequence[Example], context: str) -> str:
        """What the model reads before a completion."""
        return self.description + "".join(each.shown for each in demonstrations) + context


def exact_match(text: str, accepted: Sequence[str]) -> float:
    """1 if the text is one of the answers, space around them aside."""
    return float(text.strip() in {each.strip() for each in accepted})


def f1(text: str, accepted: Sequence[str]) -> float:
    """Overlap of words with the nearest answer: harmonic mean of precision and recall."""
    return max(_f1(text.lower().split(), each.lower().split()) for each in accepted)


def _f1(words: list[str], truth: list[str]) -> float:
    common = sum(min(words.count(word), truth.count(word)) for word in set(words))
    if not common:
        return float(words == truth)
    return 2 * common / (len(words) + len(truth))
