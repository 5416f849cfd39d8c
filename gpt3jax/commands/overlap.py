"""`gpt3jax data overlap`: the overlap between tasks and the text that a model was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from json import dumps
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from gpt3jax import serde
from gpt3jax.commands.inputs import check_range
from gpt3jax.errors import ConfigError
from gpt3jax.run_dir import Run


def data_overlap(
    path: Positional[Path],
    task: tuple[str, ...],
    results: Path | None = None,
    words: Path | None = None,
    examples: int | None = None,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Search the training text for task examples by shared N-grams (the paper's Appendix C).

    Examples:
      gpt3jax data overlap data/books --task mine.jsonl
      gpt3jax data overlap runs/tiny --task arithmetic --results out/results.json

    Args:
      path: A run, or a folder made by `data prepare`.
      task: Names of tasks, as for `evaluate`.
      results: A results.json of these tasks, to compare scores on clean and dirty examples.
      words: A word list for the scrambles; default: words of the training text.
      examples: As in the evaluation.
      seed: As in the evaluation.
      json: Print all results as JSON, with the N-grams found in each dirty example.
    """
    check_range(1, 10**7, examples=1 if examples is None else examples)
    check_range(0, 2**32 - 1, seed=seed)
    from gpt3jax.evals.overlap import overlap, record_of
    from gpt3jax.evals.results import digest
    from gpt3jax.evals.tasks.files import BUILT_IN, load_tasks
    from gpt3jax.evals.tasks.words import read_words, words_of

    folders = [path]
    if Run(path).exists():
        folders = [Path(source.path) for source in Run(path).experiment().data.sources]

    def word_list() -> list[str]:
        return read_words(words) if words else words_of(_texts(folders))

    loaded = load_tasks(task, words=word_list, count=examples, seed=seed)
    overlaps = overlap(loaded, _texts(folders), set(BUILT_IN))
    settings = _settings(results) if results else []
    records = [
        record_of(each, settings, digest(of)) for each, of in zip(overlaps, loaded, strict=True)
    ]
    if json:
        print(dumps(records))
    else:
        _print(records)


def _texts(folders: Sequence[Path]) -> Iterator[str]:
    from gpt3jax.data import loader
    from gpt3jax.data.manifest import TOKENIZER, load_manifest
    from gpt3jax.data.tokenizer import Tokenizer

    for folder in folders:
        tokenizer = Tokenizer.load(folder / TOKENIZER, load_manifest(folder).tokenizer)
        yield from map(tokenizer.decode, loader.documents(folder))


def _settings(results: Path) -> list[dict[str, Any]]:
    from gpt3jax.evals.results import LARGEST

    try:
        record = serde.read(results, LARGEST)
        return [each for each in record["settings"] if each["examples"] and each["task"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"--results {results} cannot be read: {error}. Name the results.json of an evaluation"
        ) from error


def _print(records: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from gpt3jax.evals.page import percent

    table = Table(box=None, pad_edge=False)
    numbers = ("N", "examples", "dirty", "shots", "all, %", "clean, %", "dirty, %", "change")
    for name in ("task", *numbers):
        table.add_column(name, justify="left" if name == "task" else "right")
    for record in records:
        dirty = f"{record['dirty']:,} ({record['dirty'] / record['examples']:.1%})"
        first = (record["task"], str(record["n"]), f"{record['examples']:,}", dirty)
        if not record["scores"]:
            table.add_row(*first)
        for score in record["scores"]:
            shares = (percent(score[of]) for of in ("all", "clean", "dirty"))
            change = "" if score["change"] is None else f"{score['change']:+.1%}"
            table.add_row(*first, str(score["shots"]), *shares, change)
            first = ("",) * len(first)
    Console(highlight=False, markup=False).print(table)
