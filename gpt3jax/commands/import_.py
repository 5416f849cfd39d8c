"""`gpt3jax import`: import a model as a run."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional


def import_(folder: Positional[Path], run: Path) -> None:
    """Import a GPT-2, GPT-Neo or Cerebras-GPT model, or another run's newest weights, as a run.

    Examples:
      gpt3jax import downloads/gpt2 --run runs/gpt2
      gpt3jax import runs/tiny --run runs/tiny-again

    Args:
      folder: A folder with config.json, safetensors and a tokenizer, or a run.
      run: The new run directory.
    """
    from gpt3jax.interchange.import_ import import_ as run_import
    from gpt3jax.runtime.progress import progress

    with progress() as report:
        imported = run_import(folder, run, report)
    print(
        f"{run}: {imported.parameters:,} parameters of a {imported.family} model, "
        f"{imported.tokenizer.vocabulary:,} tokens"
    )
