"""Commands about training: before a run, the run itself, and whether it can be trusted."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from gpt3jax.commands.checks import MOST_BATCHES, check_range
from gpt3jax.config import ConfigError, Experiment
from gpt3jax.run import Changes, Run
from gpt3jax.sharding.cluster import Hosts


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
        from gpt3jax.memory import keep_freed_memory

        keep_freed_memory()
    from gpt3jax.bench import bench as run_bench

    run_bench(what, experiment, repeats, as_json=json)


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
    from gpt3jax import scaling
    from gpt3jax.plan import planner, show, slices

    if budget is not None:
        show.show_budget(experiment, budget, as_json=json)
        return
    if chips is None:
        raise ConfigError("plan needs --chips, as v5p:8x8x16 or h100:64, or --budget DOLLARS")
    if finalists < 1:
        raise ConfigError(f"--finalists is {finalists}: at least the best is compiled. Raise it")
    laws = scaling.read(law) if law else None
    found = planner.plan(experiment, slices.parse(chips), keep)
    compiled = []
    if compile:
        from gpt3jax.train.ahead import compile_step

        compiled = [(each, compile_step(each)) for each in found.shortlist(finalists)]
    show.show(found, price, compiled, laws, as_json=json)


def train(
    experiment: Experiment,
    run: Path | None = None,
    hosts: Hosts = Hosts(),  # noqa: B008 (frozen)
    stuck_after: float = 600.0,
    changes: Changes = Changes(),  # noqa: B008 (frozen)
) -> int:
    """Start a run, or resume the one that is there. Alone, or the same command on every host.

    Examples:
      gpt3jax train experiments/tiny.py
      gpt3jax train experiments/tiny.py --run runs/wide --model.d-model 384 --model.n-heads 12
      gpt3jax train experiments/tiny.py --coordinator 10.0.0.1:9911 --processes 2 --process 0
      gpt3jax train experiments/tiny.py --rewind-to 400 --skip 50
      gpt3jax train experiments/tiny.py --schedule.peak-learning-rate 1e-3 --allow-change schedule

    Args:
      experiment: The experiment; each field can be overridden.
      run: Folder of the run, seen by all hosts; runs/NAME if not given.
      hosts: How to find the other processes; a cluster is detected.
      stuck_after: Of several processes: seconds without progress after which one says where it
        is, and ends; 0: never.
      changes: To a run that is there; each is recorded in its ledger.
    """
    began = time.time()
    check_range(0, 10**9, stuck_after=stuck_after)
    check_range(0, MOST_BATCHES, skip=changes.skip, rewind_to=changes.rewind_to or 0)
    from gpt3jax.model.trainable import trained
    from gpt3jax.sharding.cluster import is_likely, join
    from gpt3jax.train.folder import check_base, check_writable, data_identity

    path = run or Path("runs") / experiment.name
    experiment = Run(path).located(experiment)
    if not is_likely(hosts):
        # What data and disk forbid is said before jax is imported.
        check_writable(path)
        trained(experiment)
        data_identity(experiment)
        if experiment.init_from and not Run(path).exists():
            check_base(experiment)
    from gpt3jax.memory import keep_freed_memory

    keep_freed_memory()
    join(hosts)
    from gpt3jax.write import train_and_tell

    return train_and_tell(experiment, path, stuck_after, changes, began)


def doctor(
    experiment: Experiment | None = None, run: Path | None = None, json: bool = False
) -> int:
    """Check what a run needs before it starts: one line each, and what cures a failure.

    Examples:
      gpt3jax doctor
      gpt3jax doctor experiments/tiny.py --run runs/tiny
      gpt3jax doctor experiments/gpt3_1b3.py --train.microbatch 8 --json

    Args:
      experiment: The experiment, for its disk, memory and data; not needed for the rest.
      run: Folder of the run, there or not; runs/NAME if not given.
      json: Print the checks as JSON.
    """
    from gpt3jax.doctor import diagnose

    return diagnose(experiment, run, as_json=json)


def verify(run: Positional[Path], replay: str | None = None, json: bool = False) -> int:
    """Check every hash of a run, or do steps again and compare their bits.

    Examples:
      gpt3jax verify runs/tiny
      gpt3jax verify runs/tiny --replay 400:410

    Args:
      run: The run.
      replay: A:B does steps A+1 to B again, from a checkpoint at or before A, and compares what
        was logged of them: another result on the same machine is a silent fault of one of them.
      json: Print the verdicts as JSON.
    """
    from gpt3jax.verify import verify as run_verify

    return run_verify(run, replay, as_json=json)
