"""`gpt3jax evaluate`: zero-shot, one-shot and few-shot evaluation."""

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
    from gpt3jax.evals.run import evaluate_runs

    evaluate_runs(
        runs,
        tasks,
        Protocol(shots, draws, seed, shared, beams),
        examples=examples,
        words=words,
        mesh=mesh,
        step=step,
        out=out,
        draw_plot=plot,
        as_json=json,
    )
