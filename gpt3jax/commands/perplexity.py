"""`gpt3jax perplexity`: perplexity on held-out text."""

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
    """Measure perplexity on held-out text, per token, byte, word and position.

    Examples:
      gpt3jax perplexity runs/tiny
      gpt3jax perplexity runs/tiny --data data/books --windows 500 --json

    Args:
      run: The run.
      data: A folder made by `data prepare` with the run's tokenizer; default: the run's own data.
      windows: Number of held-out windows; 0: all.
      mesh: Devices along each axis of the mesh.
      weights: Storage of matrices, as for `generate`.
      step: Step of the checkpoint; default: the newest.
      json: Print the results as JSON.
    """
    check_range(0, 10**9, windows=windows)
    from gpt3jax.evals.run import measure_perplexity

    measure_perplexity(run, data, windows, mesh, weights, step, json)
