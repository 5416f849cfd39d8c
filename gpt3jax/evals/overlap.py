"""Was the test in the training text? The paper's overlap analysis (Appendix C).

An example is dirty if any N words of it in a row stand in the training text,
lower-cased and without punctuation. N is the length in words that 5 % of the
task's examples fall short of, from 8 to 13; a generated task's may be as low as 2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from gpt3jax.evals.task import Task

FEWEST, MOST = 8, 13
FEWEST_GENERATED = 2
# To a space, not away: the paper's own list has "didn t" and "co operation".
_PUNCTUATION = re.compile(r"[^\w\s]|_")
_RUN = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Overlap:
    """What of a task stands in a training text."""

    task: str
    n: int
    """Words of a gram."""
    examples: int
    too_short: int
    """Examples of fewer words, which count as clean."""
    dirty: dict[int, str]
    """Number of an example to a gram of it that the training text has."""

    @property
    def share(self) -> float:
        """Of examples that are dirty."""
        return len(self.dirty) / self.examples


def words_of(text: str) -> list[str]:
    """Lower-cased words without punctuation.

    >>> words_of("I didn't co-operate.")
    ['i', 'didn', 't', 'co', 'operate']
    """
    return _PUNCTUATION.sub(" ", text.lower()).split()


def places_of(text: str) -> list[tuple[str, int, int]]:
    """The words of a text, as `words_of` gives them, each with its start and end in it.

    >>> places_of("I didn't")
    [('i', 0, 1), ('didn', 2, 6), ('t', 7, 8)]
    """
    # Lower case may be longer than what it comes from: a run is found first, then lowered.
    runs = ((run.group(), *run.span()) for run in _RUN.finditer(text))
    return [(word, start, end) for run, start, end in runs for word in words_of(run)]


def grams(words: Sequence[str], n: int) -> Iterable[str]:
    """Every n words in a row."""
    return (" ".join(words[start : start + n]) for start in range(len(words) - n + 1))


def gram_size(lengths: Sequence[int], fewest: int = FEWEST) -> int:
    """N for examples of these lengths in words."""
    percentile = sorted(lengths)[len(lengths) // 20]
    return min(MOST, max(fewest, percentile))


def overlap(tasks: Sequence[Task], documents: Iterable[str], generated: set[str]) -> list[Overlap]:
    """Find the examples of each task in the documents, which are read once.

    Args:
      tasks: with the examples.
      documents: the training text.
      generated: names of tasks whose text is generated, and may be short.
    """
    texts = [[words_of(example.shown) for example in task.examples] for task in tasks]
    sizes = [
        gram_size(list(map(len, of_task)), FEWEST_GENERATED if task.name in generated else FEWEST)
        for task, of_task in zip(tasks, texts, strict=True)
    ]
    wanted: dict[int, dict[str, list[tuple[int, int]]]] = {}
    for number, (n, of_task) in enumerate(zip(sizes, texts, strict=True)):
        of_size = wanted.setdefault(n, {})
        for example, words in enumerate(of_task):
            for gram in set(grams(words, n)):
                of_size.setdefault(gram, []).append((number, example))
    found: list[dict[int, str]] = [{} for _ in tasks]
    for document in documents:
        words = words_of(document)
        for n, of_size in wanted.items():
            for gram in set(grams(words, n)) & of_size.keys():
                for number, example in of_size[gram]:
                    found[number].setdefault(example, gram)
    return [
        Overlap(task.name, n, len(of_task), sum(len(words) < n for words in of_task), dirty)
        for task, n, of_task, dirty in zip(tasks, sizes, texts, found, strict=True)
    ]


def scores(found: Overlap, setting: dict[str, Any]) -> dict[str, float | None]:
    """Score on all, on clean and on dirty examples, and how far clean is from all, relatively."""
    by_example = [each["score"] for each in setting["examples"]]
    clean = [score for n, score in enumerate(by_example) if n not in found.dirty]
    dirty = [score for n, score in enumerate(by_example) if n in found.dirty]
    everything = fmean(by_example)
    of_clean = fmean(clean) if clean else None
    change = None if of_clean is None or not everything else of_clean / everything - 1
    return {
        "all": everything, "clean": of_clean, "dirty": fmean(dirty) if dirty else None,
        "change": change,
    }  # fmt: skip
