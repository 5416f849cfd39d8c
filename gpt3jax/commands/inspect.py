"""`gpt3jax inspect`: the page about what happens inside."""

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
    """Make one page that shows how the model wrote each token, and what is inside it.

    Examples:
      gpt3jax inspect runs/tiny --prompt 'def main('
      gpt3jax inspect runs/in_context --prompt ' \\n ba ko' --task hidden_rule --out page.html
      gpt3jax inspect experiments/gpt3_175b.py

    Args:
      run: The run; or an experiment file, for the anatomy of a model without weights.
      prompt: Text to continue, as `generate` takes and continues it with the same settings; empty
        starts a new document.
      new_tokens: At most this many; fewer at the end of a document.
      temperature: Below 1 is bolder in what is likely; 0 always takes the likeliest token.
      top_k: Draw from the k likeliest tokens; 0 from all.
      top_p: Draw from the fewest tokens whose probability adds up to this.
      seed: The same seed writes the same text.
      layers: Whose attention and additions are shown; all if not given.
      task: What is asked with 0, 1, 4 and 16 demonstrations: a name or file, as `evaluate` takes.
      mesh: How the devices are used.
      step: The checkpoint; the newest if not given.
      out: The page; RUN/inspect.html if not given, or NAME.html of an experiment file.
    """
    check_range(0, 2**32 - 1, seed=seed)
    check_range(1, LONGEST_PROMPT, new_tokens=new_tokens)
    from gpt3jax.inspect.record import Writing, look, look_at_shape, write_page

    if run.suffix == ".py":
        from gpt3jax.user_code import load_experiment

        experiment = load_experiment(run)
        write_page(look_at_shape(experiment), out or Path(f"{experiment.name}.html"))
    else:
        from gpt3jax.decoding.decode import Sampling

        writing = Writing(
            read_prompt(prompt), new_tokens, Sampling(temperature, top_k, top_p), seed
        )
        record = look(run, writing, layers=layers, task=task, mesh=mesh, step=step)
        write_page(record, out or run / "inspect.html")
