"""A sweep from its beginning to its page."""

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
    """Join a sweep or begin it, train what is left, and write the results.

    Returns:
      The exit code: 0, or 128 + n where signal n stopped it.

    Raises:
      ConfigError: nothing can be tried, or the results cannot be written.
      RunError: the storage failed.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with _storage(plan.storage, serve) as storage:
        sweep = Sweep(plan, storage)
        with show.watching() if not as_json else contextlib.nullcontext(_nothing) as watch:
            trials = sweep.go(watch)
        importance = importances(sweep.study)
    page = write_results(trials, importance, plan.folder)
    if as_json:
        rows = [dataclasses.asdict(trial) for trial in trials]
        print(json.dumps({"trials": rows, "page": str(page), "importance": importance}))
    else:
        _tell(trials, page)
    return 128 + sweep.caught[0] if sweep.caught else 0


@contextlib.contextmanager
def _storage(name: str, serve: str | None) -> Iterator[optuna.storages.BaseStorage]:
    if serve:
        with store.serving(name, serve) as storage:
            yield storage
        return
    if name.endswith(".db"):
        raise ConfigError(
            f"--storage {name} is SQLite, which two machines would spoil: it is for --serve "
            "HOST:PORT. Add that, or use FILE.journal"
        )
    yield store.open_storage(name)


def write_results(trials: Sequence[Trial], importance: dict[str, float], folder: Path) -> Path:
    """The CSV file and the page of a sweep; returns the page.

    Raises:
      ConfigError: they cannot be written.
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
    """What share of the differences among trials each parameter explains, by PED-ANOVA.

    Empty where there are too few trials, or one parameter, to tell.
    """
    try:
        found = optuna.importance.get_param_importances(study)
    except (ValueError, RuntimeError):
        return {}
    return {name: float(share) for name, share in found.items()} if len(found) > 1 else {}


def _tell(trials: Sequence[Trial], page: Path) -> None:
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
    """Shown of a sweep that prints JSON."""
