"""The sweep on this machine: takes trials from the storage, trains them, tells how they ended.

Optuna is talked to from here alone. A worker is the process, or processes, that
train one trial on one whole mesh: `gpt3jax train`, or what `launch` names, as
`srun gpt3jax train`. Other machines may do the same on the same storage.
"""

from __future__ import annotations

import shlex
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import optuna
from optuna.trial import TrialState

from gpt3jax.config import Experiment
from gpt3jax.errors import ConfigError
from gpt3jax.run_dir import Run
from gpt3jax.serde import short_hash
from gpt3jax.sweep import store, worker
from gpt3jax.sweep.space import Params, Space, grid, load
from gpt3jax.sweep.worker import Work
from gpt3jax.train.monitor.display import over_windows
from gpt3jax.train.schedules import total_tokens
from gpt3jax.user_code import load_experiment

POLL_S = 0.2
REFRESH_S = 2.0
"""Seconds between two looks at what other machines do."""
STARTUP = 5
"""Complete trials before TPE models them or any is pruned."""

Sampler = Literal["tpe", "random", "grid"]
Pruner = Literal["median", "halving", "none"]


@dataclass(frozen=True)
class Plan:
    """What a sweep is told."""

    file: Path
    overrides: tuple[str, ...]
    """For every trial, before its own."""
    trials: int
    workers: int
    sampler: Sampler
    pruner: Pruner
    seed: int
    storage: str
    folder: Path
    """Where the runs of this machine and the results lie."""
    launch: str = worker.TRAIN


class Sweep:
    """One machine's part in a sweep."""

    def __init__(self, plan: Plan, storage: optuna.storages.BaseStorage):
        """Join the sweep, or begin it.

        Raises:
          ConfigError: the experiment file cannot work, or another sweep is there.
        """
        self.plan = plan
        self.space, experiment = load(plan.file), load_experiment(plan.file)
        terms = {
            "experiment": short_hash(experiment.to_json()),
            "overrides": " ".join(plan.overrides), "sampler": plan.sampler, "seed": plan.seed,
        }  # fmt: skip
        if plan.sampler == "grid":
            terms["trials of the grid"] = plan.trials
        self.study = store.join(storage, terms, queue(self.space, plan))
        self.study.pruner = make_pruner(plan.pruner, experiment)
        self.works: list[Work] = []
        self.shares = worker.shares(plan.workers)
        self.caught: list[int] = []
        self.mistake = ""

    def go(self, show: Callable[[list[store.Trial]], None]) -> list[store.Trial]:
        """Train until no trial is left; `show` is called whenever there is something new.

        Raises:
          ConfigError: a trial is a user's mistake: what the space gives cannot work.
          RunError: the storage failed.
        """
        looked = 0.0
        try:
            with _caught(self.caught), store.told("the storage"):
                while not (self.caught or self.mistake):
                    is_new = self._follow()
                    if is_new or time.monotonic() - looked > REFRESH_S:
                        looked = time.monotonic()
                        store.reap(self.study)
                        self._fill()
                        trials = store.read(self.study)
                        show(trials)
                        if not self.works and all(trial.is_over for trial in trials):
                            return trials
                    time.sleep(POLL_S)
                self._stop_all("the sweep was stopped")
                trials = store.read(self.study)
                show(trials)
        finally:
            # After an error of the storage, too: nothing is left behind to run.
            for each in self.works:
                each.tell_to_stop("stopped", "the sweep ended")
            for each in self.works:
                each.process.wait()
        if self.mistake:
            raise ConfigError(self.mistake)
        return trials

    def _fill(self) -> None:
        """Give every free worker a trial."""
        for slot in sorted(set(range(self.plan.workers)) - {work.slot for work in self.works}):
            trial = store.take(self.study)
            if trial is None:
                return
            self.works.append(self._start(trial, slot))

    def _start(self, trial: optuna.Trial, slot: int) -> Work:
        place = trial.user_attrs["place"]
        # Drawn from seed and place, so that a trial is the same after a resume; TPE looks at
        # what is known by then as well.
        self.study.sampler = make_sampler(self.plan, place)
        words = [*self.plan.overrides, *self.space.words(trial)]
        run = Run(self.plan.folder / f"trial-{place:03}")
        command = worker.command(self.plan.launch, self.plan.file, run.path, words)
        trial.set_user_attr("command", shlex.join(command))
        return worker.start(trial, slot, run, command, self.shares[slot])

    def _follow(self) -> bool:
        """Look at all that are under way; whether there is anything new."""
        is_new = False
        for work in list(self.works):
            is_over = work.process.poll() is not None
            is_new |= work.follow(self.plan.pruner != "none", store.BEAT_S) or is_over
            if is_over:
                self.works.remove(work)
                self._end(work)
        return is_new

    def _end(self, work: Work) -> None:
        """Tell how a trial ended, or give it back."""
        trial, code = work.trial, work.process.returncode
        notes = trial.user_attrs
        seconds = time.monotonic() - work.began
        if work.run.exists():
            trial.set_user_attr("flops", flops(work.run))
            trial.set_user_attr("windows", windows(work.run))
        said = worker.last_words(work.log)
        frozen = self.study.get_trials()[trial.number]

        def end(how: store.Ended, why: str, state: TrialState, value: float | None = None) -> None:
            trial.set_user_attr("ended", how)
            trial.set_user_attr("seconds", notes.get("seconds", 0.0) + seconds)
            if why:
                trial.set_user_attr("why", why)
            self.study.tell(trial, value, state)

        losses = [loss for _, loss in worker.curve(work.run)]
        if work.stop == "stopped":
            store.give_back(self.study, frozen, work.why, seconds)
        elif work.stop:
            end(work.stop, work.why, TrialState.PRUNED)
        elif code == 0 and losses:
            end("complete", "", TrialState.COMPLETE, losses[-1])
        elif code == 1 and worker.has_diverged(work.run):
            end("diverged", said, TrialState.PRUNED)
        elif code == 2 and "is being trained by process" in said:
            # Left over from a worker that was killed; it saves, and ends.
            store.give_back(self.study, frozen, "its run was still in use", seconds)
        elif code == 2:
            end("failed", said, TrialState.FAIL)
            self.mistake = (
                f"trial {work.place} cannot be trained: {said.rstrip('.')}. Mend space() of "
                f"{self.plan.file}, and name another --storage"
            )
        else:
            why = f"ended by signal {-code}" if code < 0 else f"exit code {code}: {said}"
            failures = notes.get("failures", 0) + 1
            if failures >= store.TRIES:
                end("failed", why, TrialState.FAIL)
            else:
                store.give_back(self.study, frozen, why, seconds, failures)

    def _stop_all(self, why: str) -> None:
        """Trials under way save, and go back into the queue."""
        for work in self.works:
            work.tell_to_stop("stopped", why)
        while self.works:
            self._follow()
            time.sleep(POLL_S)


def queue(space: Space, plan: Plan) -> list[Params]:
    """What is set of each trial: of the first ones, and of a grid, all; else nothing."""
    first = list(space.first)
    if plan.sampler == "grid":
        return [*first, *grid(space.ranges, plan.trials - len(first))]
    return [*first, *({} for _ in range(plan.trials))][: plan.trials]


def make_sampler(plan: Plan, place: int) -> optuna.samplers.BaseSampler:
    """What draws the values of a trial: a function of the sweep's seed and its place."""
    seed = zlib.crc32(f"{plan.seed}/{place}".encode())
    if plan.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
    return optuna.samplers.RandomSampler(seed=seed)


def make_pruner(name: Pruner, experiment: Experiment) -> optuna.pruners.BasePruner:
    """What stops losers; trials are compared at the same tokens seen.

    median: those worse, at their best, than half of the complete ones were by then; after
    a quarter of the tokens. halving: those not among the best third at 1/27, 1/9 and 1/3
    of them (ASHA, arXiv 1810.05934).
    """
    tokens = total_tokens(experiment)
    if name == "median":
        return optuna.pruners.MedianPruner(STARTUP, n_warmup_steps=tokens // 4)
    if name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(max(1, tokens // 27), reduction_factor=3)
    return optuna.pruners.NopPruner()


def windows(run: Run) -> str:
    """Over how many held-out windows the losses of a run were measured, in words."""
    return over_windows(next((r for r in run.metrics() if "val_windows" in r), {}))


def flops(run: Run) -> float:
    """Training FLOPs of a run by the tokens that it has seen."""
    from gpt3jax.model.param_specs import flops_per_token

    tokens = max((record.get("tokens", 0) for record in run.metrics()), default=0)
    return float(tokens) * flops_per_token(run.experiment().model)


@contextmanager
def _caught(signals: list[int]) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the sweep in order; a second one changes nothing."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda n, _: signals.append(n)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
