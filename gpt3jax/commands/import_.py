"""`gpt3jax import`: a folder of weights as a run."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional


def import_(folder: Positional[Path], run: Path) -> None:
    """Make a run of a GPT-2, GPT-Neo or Cerebras-GPT folder, or of another run's newest weights.

    Examples:
      gpt3jax import downloads/gpt2 --run runs/gpt2
      gpt3jax import runs/tiny --run runs/tiny-again

    Args:
      folder: With config.json, safetensors and a tokenizer; or a run.
      run: Folder of the new run.
    """
    from gpt3jax.interchange.import_ import import_ as run_import
    from gpt3jax.runtime.progress import progress

    with progress() as report:
        found = run_import(folder, run, report)
    print(
        f"{run}: {found.parameters:,} parameters of a {found.family} model, "
        f"{found.tokenizer.vocabulary:,} tokens"
    )
