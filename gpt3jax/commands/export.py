"""`gpt3jax export`: export a run's model for transformers or as StableHLO programs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional


def export(
    run: Positional[Path],
    to: Literal["huggingface", "stablehlo"],
    out: Path,
    dtype: Literal["float32", "bfloat16"] = "float32",
    step: int | None = None,
) -> None:
    """Export a run's model for transformers, or as StableHLO programs that only need jax.

    Examples:
      gpt3jax export runs/tiny --to huggingface --out exported/tiny
      gpt3jax export runs/tiny --to huggingface --out exported/tiny-400 --dtype bfloat16 --step 400
      gpt3jax export runs/tiny --to stablehlo --out exported/programs

    Args:
      run: The run.
      to: huggingface, or stablehlo for CPU, CUDA and TPU. A certificate records that the exported
        model computes the same logits.
      out: Folder to write; it is created once it is complete and verified.
      dtype: Dtype of the weights; for programs, also of the activations.
      step: Step of the checkpoint; default: the newest.
    """
    if to == "stablehlo":
        from gpt3jax.interchange.stablehlo import export as run_export
    else:
        from gpt3jax.interchange.export import export as run_export
    from gpt3jax.runtime.progress import progress

    with progress() as report:
        certificate = run_export(run, out, dtype=dtype, step=step, progress=report)
    print(f"{out}: {certificate.parameters:,} parameters of step {certificate.step} as {to}")
    print(certificate.line)
    if to == "stablehlo":
        print(f"python {out / 'run.py'} 20 generates 20 tokens; it needs jax and flatbuffers")
