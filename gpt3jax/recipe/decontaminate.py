"""Test questions cut out of training text: 13 words in a row (Appendix C).

A run of 13 words that a training document shares with any test goes, with 200
characters on each side of it; what is left are pieces, each a document of its own,
if it has 200 characters. A document that falls into more than 10 pieces goes whole,
and a run that more than 10 documents have is common speech or boilerplate and stays.

Words are those of `data overlap`. The paper says "a 200 character window around it":
that it is 200 on each side is how lm-evaluation-harness reads it, too; pieces are
counted before short ones go. A bug left the paper's long documents unfiltered; not
these.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from gpt3jax.evals.overlap import grams, places_of
from gpt3jax.evals.task import Task


@dataclass(frozen=True)
class Rule:
    """The numbers of the paper."""

    n: int = 13
    """Words of a run."""
    window: int = 200
    """Characters that go on each side of one."""
    shortest: int = 200
    """Characters of a piece, at least."""
    most_pieces: int = 10
    """Of a document that stays."""
    most_documents: int = 10
    """Documents that have a run, if it is to count."""


PAPER = Rule()


def grams_of(tasks: Iterable[Task], rule: Rule = PAPER) -> frozenset[str]:
    """All runs of words in the examples of some tasks; shorter examples have none."""
    texts = (example.shown for task in tasks for example in task.examples)
    words = ([word for word, *_ in places_of(text)] for text in texts)
    return frozenset(gram for each in words for gram in grams(each, rule.n))


def shared(text: str, tests: Collection[str], rule: Rule = PAPER) -> list[tuple[str, int, int]]:
    """The runs of a text that tests have too, each with its start and end."""
    places = places_of(text)
    runs = grams([word for word, *_ in places], rule.n)
    return [
        (gram, places[first][1], places[first + rule.n - 1][2])
        for first, gram in enumerate(runs)
        if gram in tests
    ]


def pieces(
    text: str, tests: Collection[str], documents: Mapping[str, int], rule: Rule = PAPER
) -> list[str]:
    """What is left of a text: itself, or the pieces that it was cut into, which may be none.

    Args:
      text: of a training document.
      tests: the runs of words in tests.
      documents: in how many training documents each was found.
      rule: the numbers.
    """
    spans = [
        (max(0, start - rule.window), min(len(text), end + rule.window))
        for gram, start, end in shared(text, tests, rule)
        if documents[gram] <= rule.most_documents
    ]
    if not spans:
        return [text]
    left = _between(text, spans)
    if len(left) > rule.most_pieces:
        return []
    return [piece for piece in left if len(piece) >= rule.shortest]


def _between(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """What spans leave of a text; both their starts and their ends are in order."""
    found, position = [], 0
    for start, end in spans:
        if start > position:
            found.append(text[position:start])
        position = end
    return found + [text[position:]] * (position < len(text))
