"""`gpt3jax bench`: benchmarks at the model shape of an experiment."""

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
    """Benchmark training, decoding, data loading or saving at the model shape of an experiment.

    Examples:
      gpt3jax bench train experiments/tiny.py
      gpt3jax bench decode experiments/tiny.py --model.n-layers 8 --json

    Args:
      what: train: training steps on random tokens. decode: cached decoding of one sequence with
        random weights, unquantized and quantized. data: the data loader alone; needs the
        experiment's prepared data. save: saving a checkpoint and hashing it.
      experiment: The experiment file.
      repeats: Number of timed repetitions, of which the median is reported.
      json: Print the results as JSON.
    """
    if what in ("train", "save"):
        from gpt3jax.runtime.memory import allow_device_memory, retain_freed_memory

        retain_freed_memory()
        allow_device_memory()
    from gpt3jax.plan.bench import bench as run_bench

    run_bench(what, experiment, repeats, as_json=json)
