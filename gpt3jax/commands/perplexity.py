"""`gpt3jax perplexity`: how well a model predicts held-out text."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from gpt3jax.commands.inputs import check_range
from gpt3jax.config import Mesh, Weights


def perplexity(
    run: Positional[Path],
    data: Path | None = None,
    windows: int = 0,
    mesh: Mesh = Mesh(data=1, fsdp=-1),  # noqa: B008 (frozen)
    weights: Weights = "full",
    step: int | None = None,
    json: bool = False,
) -> None:
    """How well a run's model predicts held-out text: per token, byte, word, and place.

    Examples:
      gpt3jax perplexity runs/tiny
      gpt3jax perplexity runs/tiny --data data/books --windows 500 --json

    Args:
      run: The run.
      data: A folder that `data prepare` made with the run's tokenizer; the run's own if not given.
      windows: So many held-out windows; 0: all.
      mesh: How the devices are used.
      weights: Of the model as `generate` writes with it.
      step: The checkpoint; the newest if not given.
      json: Print the figures as JSON.
    """
    check_range(0, 10**9, windows=windows)
    from gpt3jax.evals.run import measure_perplexity

    measure_perplexity(run, data, windows, mesh, weights, step, json)
