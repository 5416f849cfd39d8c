"""Runs a sweep and writes its results."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import optuna
from rich.console import Console

from gpt3jax.errors import ConfigError
from gpt3jax.run_dir import write_atomic
from gpt3jax.sweep import show, store
from gpt3jax.sweep.driver import Plan, Sweep
from gpt3jax.sweep.page import write_page
from gpt3jax.sweep.store import Trial


def run_sweep(plan: Plan, serve: str | None, *, as_json: bool) -> int:
    """Joins or creates a sweep, trains the remaining trials, and writes the results.

    Returns:
      The exit code: 0, or 128 + n if signal n stopped it.

    Raises:
      ConfigError: the sweep is invalid, or the results cannot be written.
      RunError: the storage failed.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with _storage(plan.storage, serve) as storage:
        sweep = Sweep(plan, storage)
        with show.watching() if not as_json else contextlib.nullcontext(_nothing) as watch:
            trials = sweep.run(watch)
        importance = importances(sweep.study)
    page = write_results(trials, importance, plan.folder)
    if as_json:
        rows = [dataclasses.asdict(trial) for trial in trials]
        print(json.dumps({"trials": rows, "page": str(page), "importance": importance}))
    else:
        _print(trials, page)
    return 128 + sweep.signals[0] if sweep.signals else 0


@contextlib.contextmanager
def _storage(name: str, serve: str | None) -> Iterator[optuna.storages.BaseStorage]:
    if serve:
        with store.serving(name, serve) as storage:
            yield storage
        return
    if name.endswith(".db"):
        raise ConfigError(
            f"--storage {name} is SQLite, which several machines would corrupt. Add --serve "
            "HOST:PORT, or use FILE.journal"
        )
    yield store.open_storage(name)


def write_results(trials: Sequence[Trial], importance: dict[str, float], folder: Path) -> Path:
    """Writes the CSV file and the page of a sweep; returns the path of the page.

    Raises:
      ConfigError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "trials.csv", show.as_csv(trials))
        return write_page(trials, importance, folder)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}. Choose another --storage") from (
            error
        )


def importances(study: optuna.Study) -> dict[str, float]:
    """Share of the variation among trials that each parameter explains, by PED-ANOVA.

    Empty if there are too few trials or only one parameter.
    """
    try:
        shares = optuna.importance.get_param_importances(study)
    except (ValueError, RuntimeError):
        return {}
    return {name: float(share) for name, share in shares.items()} if len(shares) > 1 else {}


def _print(trials: Sequence[Trial], page: Path) -> None:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 10_000
    console.print(show.table(trials))
    console.print(show.summary(trials))
    if winner := store.best(trials):
        loss = f"val_loss {winner.val_loss:.4f} nats/token{winner.windows}"
        console.print(f"best: trial {winner.number}, {loss}")
        console.print(f"command: {winner.command}", soft_wrap=True)
    console.print(f"page: {page}", soft_wrap=True)


def _nothing(_: list[Trial]) -> None:
    """Shows no progress, for sweeps that print JSON."""
