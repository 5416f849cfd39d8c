"""Driver of a sweep on one machine: takes trials from the storage, trains them, reports results.

A worker is the process, or processes, that train one trial on one mesh: `gpt3jax train`, or another
`launch` command such as `srun gpt3jax train`. Several machines may share one storage.
"""

from __future__ import annotations

import json
import shlex
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import optuna
from optuna.trial import TrialState

from gpt3jax.config import Experiment
from gpt3jax.config.experiment import SINCE_0_2, drop
from gpt3jax.errors import ConfigError
from gpt3jax.model.param_specs import flops_per_token
from gpt3jax.run_dir import Run
from gpt3jax.serde import short_hash
from gpt3jax.sweep import store, worker
from gpt3jax.sweep.space import Params, Space, grid, load
from gpt3jax.sweep.worker import Job
from gpt3jax.train.monitor.display import over_windows
from gpt3jax.train.schedules import total_tokens
from gpt3jax.user_code import load_experiment

POLL_S = 0.2
REFRESH_S = 2.0
"""Seconds between checks for changes by other machines."""
STARTUP = 5
"""Number of complete trials before TPE uses its model and pruning starts."""

Sampler = Literal["tpe", "random", "grid"]
Pruner = Literal["median", "halving", "none"]


@dataclass(frozen=True)
class Plan:
    """The settings of a sweep."""

    file: Path
    overrides: tuple[str, ...]
    """Overrides for every trial, before those of its own."""
    trials: int
    workers: int
    sampler: Sampler
    pruner: Pruner
    seed: int
    storage: str
    folder: Path
    """Directory for the runs of this machine and the results."""
    launch: str = worker.TRAIN


def run_sweep(
    plan: Plan, serve: str | None, show: Callable[[list[store.Trial]], None]
) -> tuple[list[store.Trial], dict[str, float], int]:
    """Joins or creates a sweep and trains the remaining trials.

    Args:
      plan: the settings.
      serve: HOST:PORT on which other machines can join, if any.
      show: called with all trials when anything changes.

    Returns:
      All trials; see `importances`; and the signal that stopped the sweep, or 0.

    Raises:
      ConfigError: the sweep is invalid.
      RunError: the storage failed.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if serve:
        opened = store.serving(plan.storage, serve)
    elif plan.storage.endswith(".db"):
        raise ConfigError(
            f"--storage {plan.storage} is SQLite, which several machines would corrupt. Add "
            "--serve HOST:PORT, or use FILE.journal"
        )
    else:
        opened = nullcontext(store.open_storage(plan.storage))
    with opened as storage:
        sweep = Sweep(plan, storage)
        trials = sweep.run(show)
        return trials, importances(sweep.study), sweep.signals[0] if sweep.signals else 0


def _hash(experiment: Experiment) -> str:
    """A hash of all fields as in version 0.1, which lacked some that are off here."""
    record = asdict(experiment)
    if experiment.model.scan_layers == "auto":
        record["model"]["scan_layers"] = True
    drop(record, {**SINCE_0_2, "train": {"noise_scale": False}})
    return short_hash(json.dumps(record, indent=2) + "\n")


class Sweep:
    """A machine's participation in a sweep."""

    def __init__(self, plan: Plan, storage: optuna.storages.BaseStorage):
        """Joins the sweep, or creates it.

        Raises:
          ConfigError: the experiment file is invalid, or the storage contains another sweep.
        """
        self.plan = plan
        self.space, experiment = load(plan.file), load_experiment(plan.file)
        terms = {
            "experiment": _hash(experiment),
            "overrides": " ".join(plan.overrides),
            "sampler": plan.sampler,
            "seed": plan.seed,
        }
        if plan.sampler == "grid":
            terms["trials of the grid"] = plan.trials
        self.study = store.join(storage, terms, queue(self.space, plan))
        self.study.pruner = make_pruner(plan.pruner, experiment)
        self.jobs: list[Job] = []
        self.shares = worker.shares(plan.workers)
        self.signals: list[int] = []
        """Signals received, which stop the sweep."""
        self.config_error = ""

    def run(self, show: Callable[[list[store.Trial]], None]) -> list[store.Trial]:
        """Trains until no trial is left, and calls `show` when anything changes.

        Raises:
          ConfigError: the space returned overrides that `gpt3jax train` rejects.
          RunError: the storage failed.
        """
        last_refresh = 0.0
        try:
            with _record_signals(self.signals), store.storage_errors():
                while not (self.signals or self.config_error):
                    has_changed = self._follow()
                    if has_changed or time.monotonic() - last_refresh > REFRESH_S:
                        last_refresh = time.monotonic()
                        store.reap(self.study)
                        self._fill()
                        trials = store.read(self.study)
                        show(trials)
                        if not self.jobs and all(trial.is_over for trial in trials):
                            return trials
                    time.sleep(POLL_S)
                self._stop_all("the sweep was stopped")
                trials = store.read(self.study)
                show(trials)
        finally:
            # No process is left running, even after an error of the storage.
            for each in self.jobs:
                each.request_stop("stopped", "the sweep ended")
            for each in self.jobs:
                each.process.wait()
        if self.config_error:
            raise ConfigError(self.config_error)
        return trials

    def _fill(self) -> None:
        """Starts a trial on every free worker."""
        for slot in sorted(set(range(self.plan.workers)) - {job.slot for job in self.jobs}):
            trial = store.take(self.study)
            if trial is None:
                return
            self.jobs.append(self._start(trial, slot))

    def _start(self, trial: optuna.Trial, slot: int) -> Job:
        place = trial.user_attrs["place"]
        # The sampler's seed depends on the sweep's seed and the place, so that a trial is the same
        # after a resume. TPE also depends on the results so far.
        self.study.sampler = make_sampler(self.plan, place)
        plan, run = self.plan, Run(self.plan.folder / f"trial-{place:03}")
        command = [*shlex.split(plan.launch), str(plan.file), "--run", str(run.path)]
        command += [*plan.overrides, *self.space.words(trial)]
        trial.set_user_attr("command", shlex.join(command))
        return worker.start(trial, slot, run, command, self.shares[slot])

    def _follow(self) -> bool:
        """Polls all running trials; returns whether anything has changed."""
        has_changed = False
        for job in list(self.jobs):
            is_over = job.process.poll() is not None
            has_changed |= job.follow(self.plan.pruner != "none", store.BEAT_S) or is_over
            if is_over:
                self.jobs.remove(job)
                self._end(job)
        return has_changed

    def _end(self, job: Job) -> None:
        """Reports the result of a trial, or returns it to the queue."""
        trial, code = job.trial, job.process.returncode
        notes = trial.user_attrs
        seconds = time.monotonic() - job.began
        if job.run.exists():
            records = job.run.metrics()
            tokens = max((record.get("tokens", 0) for record in records), default=0)
            per_token = flops_per_token(job.run.experiment().model)
            trial.set_user_attr("flops", float(tokens) * per_token)
            measured = next((record for record in records if "val_windows" in record), {})
            trial.set_user_attr("windows", over_windows(measured))
        error = worker.error_message(job.log)
        frozen = self.study.get_trials()[trial.number]

        def end(ended: str, why: str, state: TrialState, value: float | None = None) -> None:
            trial.set_user_attr("ended", ended)
            trial.set_user_attr("seconds", notes.get("seconds", 0.0) + seconds)
            if why:
                trial.set_user_attr("why", why)
            self.study.tell(trial, value, state)

        losses = [loss for _, loss in worker.curve(job.run)]
        if job.stop == "stopped":
            store.give_back(self.study, frozen, job.why, seconds)
        elif job.stop:
            end(job.stop, job.why, TrialState.PRUNED)
        elif code == 0 and losses:
            end("complete", "", TrialState.COMPLETE, losses[-1])
        elif code == 1 and worker.has_diverged(job.run):
            end("diverged", error, TrialState.PRUNED)
        elif code == 2 and "is being trained by process" in error:
            # The process of a killed worker is still saving.
            store.give_back(self.study, frozen, "its run was still in use", seconds)
        elif code == 2:
            end("failed", error, TrialState.FAIL)
            self.config_error = (
                f"trial {job.place} cannot be trained: {error.rstrip('.')}. Fix space() of "
                f"{self.plan.file}, and name another --storage"
            )
        else:
            why = f"ended by signal {-code}" if code < 0 else f"exit code {code}: {error}"
            failures = notes.get("failures", 0) + 1
            if failures >= store.TRIES:
                end("failed", why, TrialState.FAIL)
            else:
                store.give_back(self.study, frozen, why, seconds, failures)

    def _stop_all(self, why: str) -> None:
        """Makes running trials save and exit, and returns them to the queue."""
        for job in self.jobs:
            job.request_stop("stopped", why)
        while self.jobs:
            self._follow()
            time.sleep(POLL_S)


def importances(study: optuna.Study) -> dict[str, float]:
    """Share of the variation among trials that each parameter explains, by PED-ANOVA.

    Empty if there are too few trials or only one parameter.
    """
    try:
        shares = optuna.importance.get_param_importances(study)
    except (ValueError, RuntimeError):
        return {}
    return {name: float(share) for name, share in shares.items()} if len(shares) > 1 else {}


def queue(space: Space, plan: Plan) -> list[Params]:
    """The fixed parameters of each trial: those of `first` or of the grid, else none."""
    first = list(space.first)
    if plan.sampler == "grid":
        return [*first, *grid(space.ranges, plan.trials - len(first))]
    return [*first, *({} for _ in range(plan.trials))][: plan.trials]


def make_sampler(plan: Plan, place: int) -> optuna.samplers.BaseSampler:
    """The sampler for a trial, seeded by the sweep's seed and the trial's place."""
    seed = zlib.crc32(f"{plan.seed}/{place}".encode())
    if plan.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
    return optuna.samplers.RandomSampler(seed=seed)


def make_pruner(name: Pruner, experiment: Experiment) -> optuna.pruners.BasePruner:
    """The pruner, which compares trials at equal numbers of tokens.

    median: after a quarter of the tokens, prunes trials whose best loss is worse than the median
    of the complete trials at that point. halving: prunes trials outside the best third at 1/27,
    1/9 and 1/3 of the tokens (ASHA, arXiv 1810.05934).
    """
    tokens = total_tokens(experiment)
    if name == "median":
        return optuna.pruners.MedianPruner(STARTUP, n_warmup_steps=tokens // 4)
    if name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(max(1, tokens // 27), reduction_factor=3)
    return optuna.pruners.NopPruner()


@contextmanager
def _record_signals(signals: list[int]) -> Iterator[None]:
    """Appends SIGINT and SIGTERM to `signals` instead of interrupting."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda n, _: signals.append(n)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
