"""Remove test questions from training text by 13-gram overlap (Appendix C of the paper).

A 13-gram of words that a training document shares with any test is removed, with
200 characters on each side. The remaining pieces of at least 200 characters become
documents. A document that would be cut into more than 10 pieces is dropped. A
13-gram that occurs in more than 10 documents is considered common and not removed.

Words are those of `data overlap`. The paper's "200 character window around it" is
read as 200 on each side, as in lm-evaluation-harness; pieces are counted before
short ones are dropped. Long documents are filtered, too, which a bug prevented in
the paper.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from gpt3jax.evals.overlap import grams, places_of
from gpt3jax.evals.task import Task

N = 13
"""Words of an n-gram."""
WINDOW = 200
"""Characters to remove on each side of an n-gram."""
SHORTEST = 200
"""Minimum characters of a piece."""
MOST_PIECES = 10
"""Maximum pieces of a document; with more it is dropped."""
MOST_DOCUMENTS = 10
"""N-grams in more documents are not removed."""


def grams_of(tasks: Iterable[Task]) -> frozenset[str]:
    """All n-grams of words in the examples of tasks; shorter examples have none."""
    texts = (example.shown for task in tasks for example in task.examples)
    words = ([word for word, *_ in places_of(text)] for text in texts)
    return frozenset(gram for each in words for gram in grams(each, N))


def find_grams(text: str, tests: Collection[str]) -> list[tuple[str, int, int]]:
    """The n-grams that a text shares with the tests, each with its start and end."""
    words = places_of(text)
    return [
        (gram, words[first][1], words[first + N - 1][2])
        for first, gram in enumerate(grams([word for word, *_ in words], N))
        if gram in tests
    ]


def remove_grams(text: str, tests: Collection[str], documents: Mapping[str, int]) -> list[str]:
    """Remove the tests' n-grams from a text; return the text or the remaining pieces, if any.

    Args:
      text: of a training document.
      tests: the n-grams of the tests.
      documents: the number of training documents with each n-gram.
    """
    pieces, position = [], 0
    for gram, start, end in find_grams(text, tests):
        if documents[gram] <= MOST_DOCUMENTS:
            pieces.append(text[position : max(0, start - WINDOW)])
            position = end + WINDOW
    if not pieces:
        return [text]
    pieces = [piece for piece in (*pieces, text[position:]) if piece]
    if len(pieces) > MOST_PIECES:
        return []
    return [piece for piece in pieces if len(piece) >= SHORTEST]
