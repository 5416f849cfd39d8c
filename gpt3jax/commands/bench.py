"""`gpt3jax bench`: speed at the shape of an experiment."""

from __future__ import annotations

from typing import Literal

from tyro.conf import Positional

from gpt3jax.config import Experiment


def bench(
    what: Positional[Literal["train", "decode", "data", "save"]],
    experiment: Experiment,
    repeats: int = 5,
    json: bool = False,
) -> None:
    """Measure training, generation, the data pipeline or saving at the shape of an experiment.

    Examples:
      gpt3jax bench train experiments/tiny.py
      gpt3jax bench decode experiments/tiny.py --model.n-layers 8 --json

    Args:
      what: train: whole steps on random tokens. decode: cached generation of one sample, random
        weights, whole and packed. data: the loader alone, which needs the experiment's prepared
        data. save: a checkpoint, and its hashes.
      experiment: The experiment.
      repeats: Timed repetitions; the median is reported.
      json: Print the figures as JSON.
    """
    if what in ("train", "save"):
        from gpt3jax.runtime.memory import retain_freed_memory

        retain_freed_memory()
    from gpt3jax.plan.bench import bench as run_bench

    run_bench(what, experiment, repeats, as_json=json)
