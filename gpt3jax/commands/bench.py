"""`gpt3jax bench`: benchmarks at the model shape of an experiment."""

from __future__ import annotations

from typing import Literal

from tyro.conf import Positional

from gpt3jax.config import Experiment
from gpt3jax.errors import ConfigError


def bench(
    what: Positional[Literal["train", "decode", "data", "save"]],
    experiment: Experiment,
    repeats: int = 5,
    profile: bool = False,
    json: bool = False,
) -> None:
    """Benchmark training, decoding, data loading or saving at the model shape of an experiment.

    Examples:
      gpt3jax bench train experiments/tiny.py
      gpt3jax bench decode experiments/tiny.py --model.n-layers 8 --json
      gpt3jax bench train experiments/gpt3_125m.py --profile

    Args:
      what: train: training steps on random tokens. decode: cached decoding of one sequence with
        random weights, unquantized and quantized. data: the data loader alone; needs the
        experiment's prepared data. save: saving a checkpoint and hashing it.
      experiment: The experiment file.
      repeats: Number of timed repetitions, of which the median is reported.
      profile: train and decode: afterwards trace some steps to profiles/, for XProf and Perfetto,
        and print the kernels of the step with estimated and measured times.
      json: Print the results as JSON.
    """
    if profile and what not in ("train", "decode"):
        raise ConfigError(f"--profile traces steps, and {what} has none. Use train or decode")
    if what in ("train", "save"):
        from gpt3jax.runtime.memory import allow_device_memory, retain_freed_memory

        retain_freed_memory()
        allow_device_memory()
    from gpt3jax.plan.bench import bench as run_bench

    run_bench(what, experiment, repeats, as_json=json, with_profile=profile)
