"""`gpt3jax sweep`: hyperparameter search."""

from __future__ import annotations

import dataclasses
import importlib.util
from contextlib import nullcontext
from json import dumps
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from gpt3jax.commands.inputs import check_range
from gpt3jax.errors import ConfigError
from gpt3jax.style import wide_console


def sweep(
    file: Positional[Path],
    overrides: Positional[tuple[str, ...]] = (),
    trials: int = 20,
    workers: int = 1,
    storage: str | None = None,
    sampler: Literal["tpe", "random", "grid"] = "tpe",
    pruner: Literal["median", "halving", "none"] = "median",
    seed: int = 0,
    launch: str = "gpt3jax train",
    serve: str | None = None,
    json: bool = False,
) -> int:
    """Search the hyperparameters of an experiment file. Each trial is a run of `gpt3jax train`.

    Examples:
      gpt3jax sweep experiments/sweep_learning_rate.py --trials 20 --workers 2
      gpt3jax sweep experiments/sweep_learning_rate.py --sampler grid --trials 8 -- --seed 1
      gpt3jax sweep FILE.py --storage /shared/rates.journal --launch 'srun gpt3jax train'
      gpt3jax sweep FILE.py --storage rates.db --serve 10.0.0.1:13000
      gpt3jax sweep FILE.py --storage grpc://10.0.0.1:13000

    The same command resumes a sweep that was stopped or killed. On another machine it joins the
    sweep.

    Args:
      file: The experiment file, with a function space(trial); an optional function first() gives
        the values to try first.
      overrides: Overrides for all trials, after --.
      trials: Total number of trials over all machines; it can be raised later.
      workers: Concurrent trials on this machine, which share its cores and GPUs evenly.
      storage: FILE.journal, on a disk that all machines share, FILE.db, or grpc://HOST:PORT;
        default sweeps/NAME.journal. The runs are written to a folder of that name beside it.
      sampler: tpe (Tree-structured Parzen Estimator), random, or a grid over the ranges.
      pruner: Stop trials that are worse than the median, by successive halving, or never.
      seed: Seed of the sampler.
      launch: Command that trains one trial on one mesh.
      serve: HOST:PORT on which other machines can join; for trusted networks only.
      json: Print the trials as JSON at the end.
    """
    check_range(1, 10**6, trials=trials)
    check_range(1, 1024, workers=workers)
    check_range(0, 2**32 - 1, seed=seed)
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("sweep needs Optuna, which is missing. pip install 'gpt3jax[sweep]'")
    from gpt3jax.sweep import show
    from gpt3jax.sweep.driver import Plan, run_sweep
    from gpt3jax.sweep.page import write_results
    from gpt3jax.sweep.store import best
    from gpt3jax.user_code import load_experiment

    name = storage or f"sweeps/{load_experiment(file).name}.journal"
    is_file = not name.startswith("grpc://")
    folder = Path(name).with_suffix("") if is_file else Path("sweeps", load_experiment(file).name)
    plan = Plan(file, overrides, trials, workers, sampler, pruner, seed, name, folder, launch)
    with nullcontext(lambda trials: None) if json else show.watching() as watch:
        swept, importance, signal = run_sweep(plan, serve, watch)
    page = write_results(swept, importance, folder)
    if json:
        rows = [dataclasses.asdict(trial) for trial in swept]
        print(dumps({"trials": rows, "page": str(page), "importance": importance}))
    else:
        wide_console().print(show.table(swept))
        print(show.summary(swept))
        if winner := best(swept):
            loss = f"val_loss {winner.val_loss:.4f} nats/token{winner.windows}"
            print(f"best: trial {winner.number}, {loss}\ncommand: {winner.command}")
        print(f"page: {page}")
    return 128 + signal if signal else 0
