"""`gpt3jax plan`: what a training run takes, before it is started."""

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
    finalists: int = 1,
    price: float | None = None,
    law: Path | None = None,
    json: bool = False,
) -> None:
    """Does it fit, how fast, how many days, what does it cost, how is it launched?

    Examples:
      gpt3jax plan experiments/gpt3_175b.py --chips v5p:8x8x16
      gpt3jax plan experiments/gpt3_6b7.py --chips v5e:16x16*4 --compile
      gpt3jax plan experiments/gpt3_13b.py --chips h100:64 --price 2.79 --json
      gpt3jax plan experiments/gpt3_1b3.py --budget 10000

    Args:
      experiment: The experiment; each field can be overridden.
      chips: KIND:TOPOLOGY or KIND:COUNT, and *N for N slices.
      budget: Dollars: what is the best model for them, on each chip?
      keep: Parts of the layout that stay as the experiment has them; the others are searched.
      compile: Compile the best layout's step by the chip's own compiler, without a chip (extra tpu:
        minutes; extra cuda: seconds).
      finalists: Compile so many of the best, rather than one.
      price: Dollars per chip and hour, instead of the list price.
      law: A scaling_law.json of `gpt3jax report --scaling-law`, for the loss to expect.
      json: Print all figures as JSON.
    """
    check_range(1, 10**15, budget=1 if budget is None else budget)
    check_range(0.001, 10**6, price=1 if price is None else price)
    from gpt3jax.plan import planner, scaling_laws, show, slices

    if budget is not None:
        show.show_budget(experiment, budget, as_json=json)
        return
    if chips is None:
        raise ConfigError("plan needs --chips, as v5p:8x8x16 or h100:64, or --budget DOLLARS")
    if finalists < 1:
        raise ConfigError(f"--finalists is {finalists}: at least the best is compiled. Raise it")
    laws = scaling_laws.read(law) if law else None
    found = planner.plan(experiment, slices.parse(chips), keep)
    compiled = []
    if compile:
        from gpt3jax.plan.aot_compile import compile_step

        compiled = [(each, compile_step(each)) for each in found.shortlist(finalists)]
    show.show(found, price, compiled, laws, as_json=json)
