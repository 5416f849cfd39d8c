"""Evaluate a run on tasks, and write the results into a folder."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from gpt3jax.checkpoint.checkpointer import Checkpointer
from gpt3jax.checkpoint.load import LoadedModel, load_model
from gpt3jax.errors import ConfigError
from gpt3jax.evals.page import page
from gpt3jax.evals.plot import plot
from gpt3jax.evals.protocol import Protocol, Setting, check, evaluate_setting, settings_of
from gpt3jax.evals.results import collect, digest, file_of, open_folder, read_setting, write_setting
from gpt3jax.evals.scoring import Scorer
from gpt3jax.evals.summary import summarise
from gpt3jax.evals.task import Task
from gpt3jax.evals.tasks.files import load_tasks
from gpt3jax.evals.tasks.words import read_words, words_in
from gpt3jax.model.gpt3 import compute_dtype
from gpt3jax.model.param_specs import count_params
from gpt3jax.run_dir import write_atomic
from gpt3jax.runtime.progress import progress
from gpt3jax.style import pluralize


def evaluate_run(
    path: Path,
    names: Sequence[str],
    protocol: Protocol,
    devices: jax.sharding.Mesh,
    *,
    examples: int | None = None,
    words: Path | None = None,
    step: int | None = None,
    out: Path | None = None,
    draw_plot: bool = False,
) -> tuple[list[dict[str, Any]], Path]:
    """Evaluate a run, and write results.json and index.html.

    Settings that are already stored are not computed again.

    Args:
      path: the run directory.
      names: of tasks, as `load_tasks` takes them.
      protocol: the settings of the evaluation.
      devices: the mesh.
      examples: of each task, at most.
      words: word list for scramble tasks (default: words of the training data).
      step: of the checkpoint (default: the newest).
      out: folder of the results (default: `evaluations/STEP` of the run).
      draw_plot: plot the scores, too.

    Returns:
      The rows of `summarise`, and the folder.

    Raises:
      ConfigError: the run, a task or the protocol is invalid.
    """
    with jax.set_mesh(devices):
        saved = load_model(path, step, devices)
        model = {
            "run": str(path),
            "step": saved.step,
            "experiment": saved.experiment.name,
            "parameters": count_params(saved.model),
            "tokenizer": saved.tokenizer.hash,
            "state": Checkpointer(saved.run.checkpoints).manifest(saved.step).state,
        }
        folder = out or path / "evaluations" / str(saved.step)
        open_folder(folder, model)
        tasks = load_tasks(
            names, words=partial(_words, words, saved), count=examples, seed=protocol.seed
        )
        scorer = Scorer(saved.params, saved.model, saved.tokenizer, devices)
        try:
            return summarise(_evaluate(scorer, tasks, protocol, folder)), folder
        finally:  # Also after Ctrl-C or a failure.
            _write(folder, model, draw_plot)


def _words(file: Path | None, saved: LoadedModel) -> list[str]:
    """The words of a file, or the most frequent words of the run's training data."""
    if file is not None:
        return read_words(file)
    return words_in(saved.experiment.data, saved.model.context, saved.tokenizer)


def _evaluate(
    scorer: Scorer, tasks: Sequence[Task], protocol: Protocol, folder: Path
) -> list[dict[str, Any]]:
    """The results of all settings, read from the folder or computed and stored there."""
    how = dataclasses.asdict(protocol) | {"dtype": str(compute_dtype(scorer.model))}
    del how["shots"], how["draws"]
    of_task = {
        id(task): {**how, "examples": len(task.examples), "questions": digest(task)}
        for task in tasks
    }
    settings = {
        file_of(folder, each.task.name, each.shots, each.draw, of_task[id(each.task)]): each
        for each in settings_of(scorer, tasks, protocol)
    }
    stored = {file: read_setting(file) for file in settings}
    results = {file: result for file, result in stored.items() if result is not None}
    missing = [file for file in settings if file not in results]
    if len(missing) < len(settings):
        print(
            f"already in {folder}, and not computed again: {len(settings) - len(missing)} of "
            f"{pluralize(len(settings), 'setting')}",
            file=sys.stderr,
        )
    costs = [_cost(settings[file], scorer) for file in missing]
    what = pluralize(len(missing), "setting")
    with progress() as report:
        for number, (file, cost) in enumerate(zip(missing, costs, strict=True)):
            name, before, total = str(settings[file]), sum(costs[:number]), sum(costs)

            def show(share: float) -> None:
                report(what, (before + share * cost) / total, name)  # noqa: B023 (called here)

            result = evaluate_setting(scorer, settings[file], protocol, show)
            results[file] = result | {"asked": of_task[id(settings[file].task)]}
            write_setting(file, results[file])
    for file, setting in settings.items():
        # The code of a check may be newer than the stored result.
        if check(results[file], setting.task):
            write_setting(file, results[file])
    return [results[file] for file in settings]


def _cost(setting: Setting, scorer: Scorer) -> int:
    """Approximate number of prompt tokens of a setting, to estimate the remaining time."""
    size = len(scorer.tokenizer.encode(setting.task.examples[0].shown)) * (setting.shots + 1)
    return len(setting.task.examples) * min(size, scorer.model.context)


def _write(folder: Path, model: dict[str, Any], draw_plot: bool) -> None:
    """Write results.json and index.html of all stored settings."""
    settings = collect(folder)
    if not settings:
        return
    rows = summarise(settings)
    figure = folder / "scores.png"
    try:
        if draw_plot:
            plot(rows, figure)
        title = f"{model['experiment']}, step {model['step']:,}"
        image = figure.read_bytes() if draw_plot else None
        record = {**model, "scores": rows, "settings": settings}
        write_atomic(folder / "results.json", json.dumps(record, ensure_ascii=False) + "\n")
        write_atomic(folder / "index.html", page(title, rows, settings, image))
    except OSError as error:
        raise ConfigError(
            f"--out {folder} cannot be written: {error.strerror or error}. Name another"
        ) from error
