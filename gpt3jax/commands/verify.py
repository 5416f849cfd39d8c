"""`gpt3jax verify`: hashes of a run, and steps done again."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional


def verify(run: Positional[Path], replay: str | None = None, json: bool = False) -> int:
    """Check every hash of a run, or do steps again and compare their bits.

    Examples:
      gpt3jax verify runs/tiny
      gpt3jax verify runs/tiny --replay 400:410

    Args:
      run: The run.
      replay: A:B does steps A+1 to B again, from a checkpoint at or before A, and compares what
        was logged of them: another result on the same machine is a silent fault of one of them.
      json: Print the verdicts as JSON.
    """
    from gpt3jax.doctor.verify import verify as run_verify

    return run_verify(run, replay, as_json=json)
