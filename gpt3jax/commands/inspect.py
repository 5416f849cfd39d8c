"""`gpt3jax inspect`: an interpretability page for a model."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from gpt3jax.commands.inputs import LONGEST_PROMPT, check_range, read_prompt
from gpt3jax.config import Mesh


def inspect(
    run: Positional[Path],
    prompt: str | None = None,
    new_tokens: int = 12,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    layers: tuple[int, ...] = (),
    task: str = "substitution",
    mesh: Mesh = Mesh(data=1, fsdp=-1),  # noqa: B008 (frozen)
    step: int | None = None,
    out: Path | None = None,
) -> None:
    """Write an HTML page of a model's parameters, and of activations while it generates text.

    Examples:
      gpt3jax inspect runs/tiny --prompt 'def main('
      gpt3jax inspect runs/in_context --prompt ' \\n ba ko' --task hidden_rule --out page.html
      gpt3jax inspect experiments/gpt3_175b.py

    Args:
      run: The run, or an experiment file to show the parameter shapes of a model without weights.
      prompt: Text to continue; empty: start a new document. `generate` with the same settings
        gives the same text.
      new_tokens: Maximum number of new tokens; the end of a document ends sooner.
      temperature: Values below 1 sharpen the distribution; 0 is greedy.
      top_k: Sample from the k most likely tokens; 0: from all.
      top_p: Sample from the smallest set of tokens whose probabilities add up to this.
      seed: Random seed.
      layers: Layers whose attention and residual updates are shown; default: all.
      task: Task to evaluate with 0, 1, 4 and 16 demonstrations: a name or file, as for `evaluate`.
      mesh: Devices along each axis of the mesh.
      step: Step of the checkpoint; default: the newest.
      out: The HTML file; default RUN/inspect.html, or NAME.html for an experiment file.
    """
    check_range(0, 2**32 - 1, seed=seed)
    check_range(1, LONGEST_PROMPT, new_tokens=new_tokens)
    from gpt3jax.inspect.record import GenerationSettings, inspect_run, inspect_shape, write_page

    if run.suffix == ".py":
        from gpt3jax.user_code import load_experiment

        record = inspect_shape(load_experiment(run))
        out = out or Path(f"{record['name']}.html")
    else:
        from gpt3jax.decoding.decode import Sampling

        settings = GenerationSettings(
            read_prompt(prompt), new_tokens, Sampling(temperature, top_k, top_p), seed
        )
        record = inspect_run(run, settings, layers=layers, task=task, mesh=mesh, step=step)
        out = out or run / "inspect.html"
    print(f"{out}: open it in a browser ({write_page(record, out) / 1e6:.1f} MB)")
