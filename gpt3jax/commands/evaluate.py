"""`gpt3jax evaluate`: tasks asked with no, one and few demonstrations."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from gpt3jax.commands.inputs import check_range
from gpt3jax.config import Mesh


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
    """Ask the models of runs tasks with no, one and few demonstrations; nothing is updated.

    Examples:
      gpt3jax evaluate runs/tiny --tasks arithmetic scrambles --shots 0 1 few --examples 200
      gpt3jax evaluate runs/in-context --tasks patterns --shots 0 1 2 4 8 16 --plot
      gpt3jax evaluate runs/base runs/tuned --tasks mine.jsonl mine.py --beams 1 --out results

    Args:
      runs: One run or more, for one table.
      tasks: Names (two_digit_addition, reversed_words, ...), groups of them (arithmetic,
        scrambles, patterns), .jsonl files, or .py files with a function task().
      shots: Demonstrations in front of each question; few: the task's own number.
      examples: Ask only so many of each task.
      draws: Draw the demonstrations anew so often, for an error bar over draws.
      seed: Of the drawings, and of generated tasks.
      shared: Draw once for all questions, and read it once: faster, noisier.
      beams: Of generated answers (the paper: 4); 1: greedy; 0: nothing is generated, and an
        answer is right when each of its tokens is the likeliest.
      words: A word list for the scrambles; the run's training data if not given.
      mesh: How the devices are used.
      step: The checkpoint; the newest if not given.
      out: Folder to write, or of several runs one for each; RUN/evaluations/STEP if not given.
        What it has already is kept, and not computed again.
      plot: Also draw the scores against the shots: scores.png.
      json: Print the scores as JSON.
    """
    check_range(1, 10**7, examples=1 if examples is None else examples, draws=draws)
    check_range(0, 2**32 - 1, seed=seed)
    check_range(0, 64, beams=beams)
    from gpt3jax.evals.protocol import Protocol
    from gpt3jax.evals.run import evaluate_runs

    evaluate_runs(
        runs, tasks, Protocol(shots, draws, seed, shared, beams), examples=examples, words=words,
        mesh=mesh, step=step, out=out, draw_plot=plot, as_json=json,
    )  # fmt: skip
