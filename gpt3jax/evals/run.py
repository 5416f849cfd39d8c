"""The commands `evaluate` and `perplexity`: evaluate runs, print and write the results."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from gpt3jax.checkpoint.checkpointer import Checkpointer
from gpt3jax.checkpoint.load import LoadedModel, load_model
from gpt3jax.config import Data, Mesh, Source, Weights
from gpt3jax.data import loader
from gpt3jax.data.manifest import load_manifest
from gpt3jax.errors import ConfigError
from gpt3jax.evals.page import page, percent
from gpt3jax.evals.perplexity import count_words, perplexity, token_lengths
from gpt3jax.evals.plot import plot
from gpt3jax.evals.protocol import Protocol, Setting, check, evaluate_setting, settings_of
from gpt3jax.evals.results import (
    collect,
    digest,
    file_of,
    open_folder,
    read_setting,
    write_setting,
)
from gpt3jax.evals.scoring import Scorer
from gpt3jax.evals.summary import summarise
from gpt3jax.evals.task import Task
from gpt3jax.evals.tasks.files import load_tasks
from gpt3jax.evals.tasks.words import read_words, words_in
from gpt3jax.model.gpt3 import compute_dtype
from gpt3jax.model.lora import merge_lora
from gpt3jax.model.param_specs import count_params
from gpt3jax.model.quantized import quantize_and_restore
from gpt3jax.run_dir import write_atomic
from gpt3jax.runtime.progress import progress
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.style import pluralize


def evaluate_runs(
    paths: Sequence[Path],
    names: Sequence[str],
    protocol: Protocol,
    *,
    examples: int | None,
    words: Path | None,
    mesh: Mesh,
    step: int | None,
    out: Path | None,
    draw_plot: bool,
    as_json: bool,
) -> None:
    """Evaluate runs, print a table, and write results.json and index.html for each.

    Settings that are already stored are not computed again.

    Args:
      paths: the run directories.
      names: of tasks, as `load_tasks` takes them.
      protocol: the settings of the evaluation.
      examples: of each task, at most.
      words: word list for scramble tasks (default: words of the training data).
      mesh: of devices.
      step: of the checkpoint (default: the newest).
      out: folder of the results, with a folder per run if there are several.
      draw_plot: plot the scores, too.
      as_json: print JSON rather than a table.

    Raises:
      ConfigError: a run, a task or the protocol is invalid.
    """
    devices = make_mesh(mesh)
    if out and len({path.resolve().name for path in paths}) < len(paths):
        raise ConfigError(
            f"--out {out} gets a folder named after each run: two have the same name. Drop --out"
        )
    rows, folders = [], []
    for path in paths:
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
            of_out = out / path.resolve().name if out and len(paths) > 1 else out
            folder = of_out or path / "evaluations" / str(saved.step)
            open_folder(folder, model)
            tasks = load_tasks(
                names, words=partial(_words, words, saved), count=examples, seed=protocol.seed
            )
            scorer = Scorer(saved.params, saved.model, saved.tokenizer, devices)
            try:
                settings = _evaluate(scorer, tasks, protocol, folder)
            finally:  # Also after Ctrl-C or a failure.
                _write(folder, model, draw_plot)
        folders.append(folder)
        rows += [{"run": str(path), **row} for row in summarise(settings)]
    if as_json:
        print(json.dumps(rows))
        return
    _print(rows, len(paths) > 1)
    for folder in folders:
        print(f"{folder}/index.html shows the questions; results.json has all results")


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


def _print(rows: Sequence[dict[str, Any]], has_runs: bool) -> None:
    checks = list(dict.fromkeys(name for row in rows for name in row["checks"]))
    table = Table(box=None, pad_edge=False)
    texts = (("run",) if has_runs else ()) + ("task",)
    for name in (*texts, "shots", "score, %", "guessing", *checks, "nats", "GPT-3", "metric"):
        is_text = name in (*texts, "metric")
        table.add_column(
            name, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold"
        )
    for row in rows:
        how = row["metric"] + (f", by {row['normalise']}" if "normalise" in row else "")
        if "draw_deviation" in row:
            how += f"; {row['draws']} draws, standard deviation {percent(row['draw_deviation'])}"
        for count_of in ("shortened", "cut"):
            how += f"; {row[count_of]:,} {count_of}" if row[count_of] else ""
        table.add_row(
            *(row[name] for name in texts), str(row["shots"]),
            percent(row["score"], row["interval"]), percent(row["chance"]),
            *(percent(row["checks"].get(name)) for name in checks), f"{row['truth_nats']:.2f}",
            percent(row.get("paper_175b")), how,
        )  # fmt: skip
    table.caption, table.caption_justify = "score: with its 95 % interval (Wilson)", "left"
    console = Console(highlight=False, markup=False)
    # A fixed width unless the output is a terminal.
    Console(highlight=False, markup=False, width=None if console.is_terminal else 160).print(table)


def measure_perplexity(
    path: Path,
    data: Path | None,
    windows: int,
    mesh: Mesh,
    weights: Weights,
    step: int | None,
    as_json: bool,
) -> None:
    """Print the loss and perplexity of a run on its held-out windows, or on other prepared data.

    Args:
      path: the run directory.
      data: a prepared data folder (default: the run's data).
      windows: number of held-out windows; 0 for all.
      mesh: of devices.
      weights: quantization of the weights.
      step: of the checkpoint (default: the newest).
      as_json: print JSON.

    Raises:
      ConfigError: the run or the data cannot be read, or their tokenizers differ.
    """
    devices = make_mesh(mesh)
    with jax.set_mesh(devices):
        saved = load_model(path, step, devices)
        held_out = _held_out(saved, data, windows)
        params, model = saved.params, saved.model
        if weights != "full":
            params, model = merge_lora(params, model)
            params = jax.jit(quantize_and_restore, static_argnames="weights")(params, weights)
        lengths = token_lengths(saved.tokenizer, model.padded_vocabulary)
        with progress() as report:
            measured = perplexity(
                params, model, devices, held_out, lengths, lambda share: report("windows", share)
            )
    assert measured is not None  # The callback never stops the evaluation.
    words = count_words(held_out, saved.tokenizer)
    per_word = measured.per_word(words)
    record = {
        "run": str(path),
        "step": saved.step,
        "windows": measured.windows,
        "windows_available": measured.available,
        "tokens": measured.tokens,
        "bytes": measured.text_bytes,
        "words": words,
        "val_loss": measured.per_token,
        "val_bits_per_byte": measured.bits_per_byte,
        "word_perplexity": per_word,
        "loss_by_position": [measured.at_positions(i, i + 1) for i in range(model.context)],
    }
    if as_json:
        print(json.dumps(record))
        return
    print(
        f"{measured.per_token:.4f} nats/token, {measured.bits_per_byte:.4f} bits/byte, perplexity "
        f"{per_word:,.1f} per word, over {measured.windows:,} of {measured.available:,} held-out "
        f"windows: {measured.tokens:,} tokens, {measured.text_bytes:,} bytes, {words:,} words and "
        "line ends"
    )
    print("tokens before it, and the loss there in nats/token:")
    for first in sorted({0, *(1 << n for n in range(model.context.bit_length() - 1))}):
        stop = min(model.context, max(first + 1, 2 * first))
        loss = measured.at_positions(first, stop)
        name = f"{first + 1}" if stop == first + 1 else f"{first + 1} to {stop}"
        print(f"  {name:>14}  {'no targets' if loss is None else f'{loss:.3f}'}")


def _held_out(saved: LoadedModel, data: Path | None, windows: int) -> loader.HeldOut:
    """The held-out windows of the run's data, or of another folder; 0 for all."""
    context, sources = saved.model.context, saved.experiment.data
    if data is not None:
        sources = Data(sources=(Source(data.name or "data", str(data)),))
    for source in sources.sources:
        manifest = load_manifest(source.path)
        if manifest.tokenizer != saved.tokenizer.hash:
            raise ConfigError(
                f"data {source.path} has tokenizer {manifest.tokenizer}, the run "
                f"{saved.tokenizer.hash}: ids would not mean the same. Prepare it with "
                f"--tokenizer {saved.run.tokenizer_file}"
            )
    return loader.held_out(sources, windows, context)
