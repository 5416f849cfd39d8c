"""`gpt3jax evaluate`: zero-shot, one-shot and few-shot evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from gpt3jax.commands.inputs import check_range
from gpt3jax.config import Mesh
from gpt3jax.errors import ConfigError


def evaluate(
    runs: Positional[tuple[Path, ...]],
    tasks: tuple[str, ...],
    shots: tuple[int | Literal["few"], ...] = (0, 1, "few"),
    examples: int | None = None,
    draws: int = 1,
    seed: int = 0,
    shared: bool = False,
    beams: int = 4,
    words: Path | None = None,
    mesh: Mesh = Mesh(data=1, fsdp=-1),  # noqa: B008 (frozen)
    step: int | None = None,
    out: Path | None = None,
    plot: bool = False,
    json: bool = False,
) -> None:
    """Evaluate models on tasks in the zero-shot, one-shot and few-shot settings.

    Examples:
      gpt3jax evaluate runs/tiny --tasks arithmetic scrambles --shots 0 1 few --examples 200
      gpt3jax evaluate runs/in-context --tasks patterns --shots 0 1 2 4 8 16 --plot
      gpt3jax evaluate runs/base runs/tuned --tasks mine.jsonl mine.py --beams 1 --out results

    Args:
      runs: One or more runs, which are compared in one table.
      tasks: Task names (two_digit_addition, reversed_words, ...), groups (arithmetic, scrambles,
        patterns), .jsonl files, or .py files with a function task().
      shots: Numbers of demonstrations before each question; few: the task's own number.
      examples: Maximum number of examples of each task.
      draws: Number of times that demonstrations are drawn, for error bars.
      seed: Seed of the drawn demonstrations and of generated tasks.
      shared: Use the same demonstrations for all questions and prefill them once: faster, noisier.
      beams: Beams for generated answers (the paper: 4); 1: greedy; 0: generate nothing, and count
        an answer as correct if each of its tokens is the most likely one.
      words: A word list for the scrambles; default: words of the run's training data.
      mesh: Devices along each axis of the mesh.
      step: Step of the checkpoint; default: the newest.
      out: Folder to write, with a subfolder per run if there are several; default
        RUN/evaluations/STEP. Existing results are reused.
      plot: Also plot scores against shots, to scores.png.
      json: Print the scores as JSON.
    """
    check_range(1, 10**7, examples=1 if examples is None else examples, draws=draws)
    check_range(0, 2**32 - 1, seed=seed)
    check_range(0, 64, beams=beams)
    from gpt3jax.evals.protocol import Protocol
    from gpt3jax.evals.run import evaluate_run
    from gpt3jax.sharding.mesh import make_mesh

    devices = make_mesh(mesh)
    if out and len({path.resolve().name for path in runs}) < len(runs):
        raise ConfigError(
            f"--out {out} gets a folder named after each run: two have the same name. Drop --out"
        )
    protocol = Protocol(shots, draws, seed, shared, beams)
    options: dict[str, Any] = {"examples": examples, "words": words, "step": step}
    rows, folders = [], []
    for path in runs:
        own = out / path.resolve().name if out and len(runs) > 1 else out
        scores, folder = evaluate_run(
            path, tasks, protocol, devices, out=own, draw_plot=plot, **options
        )
        folders.append(folder)
        rows += [{"run": str(path), **row} for row in scores]
    if json:
        print(dumps(rows))
        return
    _print(rows, has_runs=len(runs) > 1)
    for folder in folders:
        print(f"{folder}/index.html shows the questions; results.json has all results")


def _print(rows: Sequence[dict[str, Any]], has_runs: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from gpt3jax.evals.page import percent

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
