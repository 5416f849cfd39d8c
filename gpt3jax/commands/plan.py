"""`gpt3jax plan`: estimate memory, speed and cost of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from gpt3jax.commands.inputs import check_range
from gpt3jax.config import Experiment
from gpt3jax.errors import ConfigError


def plan(
    experiment: Experiment,
    chips: str | None = None,
    budget: float | None = None,
    keep: tuple[Literal["data", "fsdp", "tensor", "remat", "microbatch"], ...] = (),
    compile: bool = False,
    kernels: bool = False,
    finalists: int = 1,
    price: float | None = None,
    law: Path | None = None,
    json: bool = False,
) -> None:
    """Estimate memory, speed, duration and cost of a training run, and how to launch it.

    Examples:
      gpt3jax plan experiments/gpt3_175b.py --chips v5p:8x8x16
      gpt3jax plan experiments/gpt3_6b7.py --chips v5e:16x16*4 --compile
      gpt3jax plan experiments/gpt3_125m.py --chips h200:1 --compile --kernels
      gpt3jax plan experiments/gpt3_13b.py --chips h100:64 --price 2.79 --json
      gpt3jax plan experiments/gpt3_1b3.py --budget 10000

    Args:
      experiment: The experiment file; each field can be overridden.
      chips: KIND:TOPOLOGY or KIND:COUNT, with *N for N slices.
      budget: Find the best model for this many dollars, on each chip.
      keep: Parts of the layout that are fixed to the experiment's values; the rest is searched.
      compile: Compile the step of the best layout ahead of time with the chip's own compiler,
        without a chip (extra tpu: minutes; extra cuda: seconds).
      kernels: With --compile: a table of the kernels of the compiled step, with the time that their
        FLOPs and bytes allow on this chip.
      finalists: Number of best layouts to compile.
      price: Dollars per chip and hour, instead of the list price.
      law: A scaling_law.json of `gpt3jax report --scaling-law`, to predict the loss.
      json: Print all results as JSON.
    """
    check_range(1, 10**15, budget=1 if budget is None else budget)
    check_range(0.001, 10**6, price=1 if price is None else price)
    from gpt3jax.plan import planner, scaling_laws, show, slices

    if budget is not None:
        show.show_budget(experiment, budget, as_json=json)
        return
    if chips is None:
        raise ConfigError("plan needs --chips, e.g. v5p:8x8x16 or h100:64, or --budget DOLLARS")
    if kernels and not compile:
        raise ConfigError("--kernels shows the compiled step: add --compile")
    if finalists < 1:
        raise ConfigError(f"--finalists is {finalists}: it must be at least 1. Raise it")
    laws = scaling_laws.read(law) if law else None
    result = planner.plan(experiment, slices.parse(chips), keep)
    compiled = []
    if compile:
        from gpt3jax.plan.aot_compile import compile_step

        compiled = [(each, compile_step(each)) for each in result.shortlist(finalists)]
    show.show(result, price, compiled, laws, as_json=json, with_kernels=kernels)
