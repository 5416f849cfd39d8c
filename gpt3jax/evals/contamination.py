"""Report the overlap between tasks and the text that a model was trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gpt3jax import serde
from gpt3jax.data import loader
from gpt3jax.data.manifest import TOKENIZER, load_manifest
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.errors import ConfigError
from gpt3jax.evals.overlap import Overlap, overlap, scores
from gpt3jax.evals.page import percent
from gpt3jax.evals.results import digest
from gpt3jax.evals.tasks.files import BUILT_IN, load_tasks
from gpt3jax.evals.tasks.words import read_words, words_of
from gpt3jax.run_dir import Run

LARGEST_RESULTS = 1 << 30
"""Maximum bytes of a results.json."""


def find_overlap(
    path: Path,
    names: Sequence[str],
    examples: int | None,
    seed: int,
    results: Path | None,
    words: Path | None,
    as_json: bool,
) -> None:
    """Print the overlap between tasks and the training text of a data folder or run.

    Args:
      path: the data folder or run.
      names: of tasks, as `load_tasks` takes them.
      examples: of each task, at most.
      seed: of built-in tasks.
      results: results.json of an evaluation, to score clean and dirty examples separately.
      words: word list for scramble tasks (default: words of the training text).
      as_json: print JSON rather than a table.

    Raises:
      ConfigError: data, tasks or results cannot be read, or do not match.
    """
    folders = [path]
    if Run(path).exists():
        folders = [Path(source.path) for source in Run(path).experiment().data.sources]

    def word_list() -> list[str]:
        return read_words(words) if words else words_of(_texts(folders))

    tasks = load_tasks(names, words=word_list, count=examples, seed=seed)
    overlaps = overlap(tasks, _texts(folders), set(BUILT_IN))
    settings = _settings(results) if results else []
    records = [
        _record(each, settings, digest(task)) for each, task in zip(overlaps, tasks, strict=True)
    ]
    if as_json:
        print(json.dumps(records))
        return
    _print(records)


def _texts(folders: Sequence[Path]) -> Iterator[str]:
    for folder in folders:
        tokenizer = Tokenizer.load(folder / TOKENIZER, load_manifest(folder).tokenizer)
        yield from map(tokenizer.decode, loader.documents(folder))


def _settings(results: Path) -> list[dict[str, Any]]:
    try:
        record = serde.parse(serde.read_bytes(results, LARGEST_RESULTS).decode())
        return [each for each in record["settings"] if each["examples"] and each["task"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"--results {results} cannot be read: {error}. Name the results.json of an evaluation"
        ) from error


def _record(result: Overlap, settings: Sequence[dict[str, Any]], questions: str) -> dict[str, Any]:
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


def _print(records: Sequence[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    numbers = ("N", "examples", "dirty", "shots", "all, %", "clean, %", "dirty, %", "change")
    for name in ("task", *numbers):
        table.add_column(name, justify="left" if name == "task" else "right")
    for record in records:
        dirty = f"{record['dirty']:,} ({record['dirty'] / record['examples']:.1%})"
        first = (record["task"], str(record["n"]), f"{record['examples']:,}", dirty)
        for score in record["scores"] or [None]:
            if score is None:
                table.add_row(*first)
                continue
            change = "" if score["change"] is None else f"{score['change']:+.1%}"
            table.add_row(
                *first,
                str(score["shots"]),
                percent(score["all"]),
                percent(score["clean"]),
                percent(score["dirty"]),
                change,
            )
            first = ("", "", "", "")
    Console(highlight=False, markup=False).print(table)
