"""`gpt3jax verify`: verify the hashes of a run, or replay steps."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional


def verify(run: Positional[Path], replay: str | None = None, json: bool = False) -> int:
    """Verify every hash of a run, or replay steps and compare the results bit for bit.

    Examples:
      gpt3jax verify runs/tiny
      gpt3jax verify runs/tiny --replay 400:410

    Args:
      run: The run.
      replay: A:B repeats steps A+1 to B from a checkpoint at or before A and compares the logged
        metrics. A difference on the same machine indicates silent data corruption.
      json: Print the results as JSON.
    """
    from gpt3jax.doctor.verify import verify as run_verify

    return run_verify(run, replay, as_json=json)
