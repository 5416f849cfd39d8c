"""The paper's analysis of the overlap between tests and training text (Appendix C).

An example is dirty if the training text has any of its N-grams of words, in lower
case and without punctuation. N is the 5th percentile of the lengths of a task's
examples in words, clipped to 8 to 13, or to 2 to 13 for generated tasks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from gpt3jax.errors import ConfigError
from gpt3jax.evals.task import Task

FEWEST, MOST = 8, 13
FEWEST_GENERATED = 2
# Replaced by a space: the paper's list has "didn t" and "co operation".
_PUNCTUATION = re.compile(r"[^\w\s]|_")
_RUN = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Overlap:
    """The overlap of a task with a training text."""

    task: str
    n: int
    """Words of an N-gram."""
    examples: int
    too_short: int
    """Number of examples with fewer than n words, which count as clean."""
    dirty: dict[int, str]
    """For each dirty example, by index, an N-gram that the training text contains."""

    @property
    def share(self) -> float:
        """The fraction of examples that are dirty."""
        return len(self.dirty) / self.examples


def words_of(text: str) -> list[str]:
    """Lower-cased words without punctuation.

    >>> words_of("I didn't co-operate.")
    ['i', 'didn', 't', 'co', 'operate']
    """
    return _PUNCTUATION.sub(" ", text.lower()).split()


def places_of(text: str) -> list[tuple[str, int, int]]:
    """The words of `words_of`, each with its start and end in the text.

    >>> places_of("I didn't")
    [('i', 0, 1), ('didn', 2, 6), ('t', 7, 8)]
    """
    # Match before lower-casing, which can change the length.
    runs = ((run.group(), *run.span()) for run in _RUN.finditer(text))
    return [(word, start, end) for run, start, end in runs for word in words_of(run)]


def grams(words: Sequence[str], n: int) -> Iterable[str]:
    """All n-grams of a sequence of words."""
    return (" ".join(words[start : start + n]) for start in range(len(words) - n + 1))


def gram_size(lengths: Sequence[int], fewest: int = FEWEST) -> int:
    """The N of a task, from the lengths of its examples in words."""
    percentile = sorted(lengths)[len(lengths) // 20]
    return min(MOST, max(fewest, percentile))


def overlap(tasks: Sequence[Task], documents: Iterable[str], generated: set[str]) -> list[Overlap]:
    """Find the N-grams of each task's examples in the documents, in one pass.

    Args:
      tasks: the tasks.
      documents: the training text.
      generated: names of generated tasks, for which N may be as small as 2.
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
    matches: list[dict[int, str]] = [{} for _ in tasks]
    for document in documents:
        words = words_of(document)
        for n, of_size in wanted.items():
            for gram in set(grams(words, n)) & of_size.keys():
                for number, example in of_size[gram]:
                    matches[number].setdefault(example, gram)
    return [
        Overlap(task.name, n, len(of_task), sum(len(words) < n for words in of_task), dirty)
        for task, n, of_task, dirty in zip(tasks, sizes, texts, matches, strict=True)
    ]


def scores(overlap: Overlap, setting: dict[str, Any]) -> dict[str, float | None]:
    """Mean scores of all, clean and dirty examples, and the change from all to clean, relative."""
    by_example = [each["score"] for each in setting["examples"]]
    clean = [score for n, score in enumerate(by_example) if n not in overlap.dirty]
    dirty = [score for n, score in enumerate(by_example) if n in overlap.dirty]
    everything = fmean(by_example)
    of_clean = fmean(clean) if clean else None
    change = None if of_clean is None or not everything else of_clean / everything - 1
    return {
        "all": everything,
        "clean": of_clean,
        "dirty": fmean(dirty) if dirty else None,
        "change": change,
    }


def record_of(
    result: Overlap, settings: Sequence[dict[str, Any]], questions: str
) -> dict[str, Any]:
    """An overlap as JSON, with the scores of the settings of its task.

    Args:
      result: the overlap.
      settings: of a results.json.
      questions: the hash of the task (`results.digest`).

    Raises:
      ConfigError: the settings have the task with other examples.
    """
    of_task = [each for each in settings if each["task"] == result.task]
    # Results may have a task more than once; old results lack a hash of its questions.
    own = [
        each
        for each in of_task
        if len(each["examples"]) == result.examples
        and each.get("asked", {}).get("questions", questions) == questions
    ]
    if of_task and not own:
        raise ConfigError(
            f"task {result.task!r} has {result.examples} examples here, and "
            f"{len(of_task[0]['examples'])} in the results: they are not the same. Give the "
            "--examples, --seed and --words of the evaluation"
        )
    return {
        "task": result.task,
        "n": result.n,
        "examples": result.examples,
        "dirty": len(result.dirty),
        "too_short": result.too_short,
        "grams": {str(number): gram for number, gram in sorted(result.dirty.items())},
        "scores": [
            {"shots": each["shots"], "draw": each["draw"], **scores(result, each)} for each in own
        ],
    }
