"""Storage of a sweep: an Optuna study that several machines may share.

A sweep has one place per requested trial. All places are queued when the sweep is created, so that
their number does not depend on which machines take them. An Optuna trial is one attempt at a place.
If its worker fails or is killed, the attempt is marked as failed and the place is queued again with
the same parameters; the next attempt resumes the run. A worker without a heartbeat for `STALE_S` is
considered dead.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from gpt3jax.errors import ConfigError, RunError
from gpt3jax.runtime.atomic_folder import is_alive
from gpt3jax.sweep.space import Params

BEAT_S = 15.0
"""Seconds between heartbeats of a worker."""
STALE_S = 120.0
"""Seconds without a heartbeat after which a trial is queued again."""
TRIES = 3
"""Failed attempts after which a trial has failed."""
WAIT_S = 20.0
"""Seconds to wait for a server, or for another machine that is creating the sweep."""
NAME = "sweep"
"""Name of the only study in a storage."""


@dataclass(frozen=True)
class Trial:
    """A place of a sweep, with the result of its latest attempt."""

    number: int
    """Place in the sweep, from 0; the run directory is trial-NUMBER."""
    params: Params
    state: str
    """waiting, running, complete, pruned, diverged or failed."""
    why: str
    """Reason for ending without completion, or the reasons why earlier attempts ended."""
    val_loss: float | None
    """Last finite validation loss, nats/token."""
    curve: dict[int, float]
    """Validation loss, nats/token, by tokens processed."""
    command: str
    seconds: float
    """Worker time over all finished attempts."""
    flops: float
    """Training FLOPs for the tokens processed."""
    worker: str
    attempts: int
    windows: str = ""
    """Description of the number of held-out windows that val_loss was measured on."""

    @property
    def is_over(self) -> bool:
        return self.state not in ("waiting", "running")


def open_storage(name: str) -> optuna.storages.BaseStorage:
    """Opens FILE.journal (which may be on a shared file system), FILE.db, or grpc://HOST:PORT.

    Raises:
      ConfigError: the storage cannot be opened, or is of an unknown kind.
    """
    path = Path(name)
    if name.startswith("grpc://"):
        return _join_server(name)
    if path.suffix not in (".journal", ".db"):
        raise ConfigError(
            f"--storage {name} is of an unknown kind: expected FILE.journal, FILE.db or "
            "grpc://HOST:PORT. Rename it"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".db":
            return optuna.storages.get_storage(f"sqlite:///{path}")
        path.open("a").close()
        backend = JournalFileBackend(str(path))
        return optuna.storages.JournalStorage(backend)
    except Exception as error:
        raise ConfigError(
            f"--storage {name} cannot be read: {_first_line(error)}. Restore it, or name another"
        ) from error


def _join_server(name: str) -> optuna.storages.BaseStorage:
    host, _, port = name.removeprefix("grpc://").rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"--storage {name} is not an address. Use grpc://HOST:PORT")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = optuna.storages.GrpcStorageProxy(host=host, port=int(port))
        storage.wait_server_ready(timeout=WAIT_S)
    except ImportError as error:
        raise ConfigError(f"--storage {name} needs grpcio. pip install 'gpt3jax[sweep]'") from error
    except ConnectionError as error:
        raise ConfigError(
            f"--storage {name} does not answer: no sweep serves it, or a firewall blocks it. Start "
            "the sweep on that host with --serve first"
        ) from error
    return storage


@contextmanager
def serving(name: str, address: str) -> Iterator[optuna.storages.BaseStorage]:
    """Serves the storage to other machines until the end of the block.

    A single thread handles all requests, including those of this process: SQLite does not lock
    rows, so two concurrent requests could get the same trial (optuna 5.0).

    Args:
      name: FILE.db. A journal loses attempts when served (optuna/optuna#6084).
      address: HOST:PORT to listen on. Anyone who can connect can write to the storage.

    Raises:
      ConfigError: the storage cannot be served.
    """
    host, _, port = address.rpartition(":")
    if not name.endswith(".db"):
        raise ConfigError(
            f"--serve {address} needs a storage FILE.db: a journal cannot be served. Add "
            "--storage sweeps/NAME.db"
        )
    if not host or not port.isdecimal():
        raise ConfigError(f"--serve {address} is not an address. Use HOST:PORT")
    from optuna.storages._grpc.server import make_server

    storage = open_storage(name)
    with Path(f"{name}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            server = make_server(storage, host, int(port), ThreadPoolExecutor(1))
            server.start()
        except (OSError, RuntimeError, ImportError) as error:
            raise ConfigError(
                f"--serve {address} cannot be listened on: {_first_line(error)}. Is {name} being "
                "served already, or grpcio missing (extra sweep)? Choose another port"
            ) from error
        try:
            local_host = "127.0.0.1" if host in ("0.0.0.0", "[::]") else host
            yield _join_server(f"grpc://{local_host}:{port}")
        finally:
            server.stop(grace=2.0)


def join(
    storage: optuna.storages.BaseStorage, terms: dict[str, Any], queue: Sequence[Params]
) -> optuna.Study:
    """Creates the study of a sweep, or joins the existing one.

    Args:
      storage: the storage of the study.
      terms: settings that must be equal on all machines.
      queue: fixed parameters of each place; those missing are sampled. Missing places are added to
        the study, none is removed.

    Raises:
      ConfigError: the storage contains another sweep, or is damaged.
    """
    with storage_errors():
        try:
            study = optuna.create_study(storage=storage, study_name=NAME)
        except optuna.exceptions.DuplicatedStudyError:
            study = optuna.load_study(storage=storage, study_name=NAME)
            deadline = time.monotonic() + WAIT_S
            while "terms" not in study.user_attrs and time.monotonic() < deadline:
                time.sleep(0.1)  # The creating machine is not ready yet, or was killed.
        existing = study.user_attrs.get("terms", terms)
        for name, value in terms.items():
            if existing.get(name) != value:
                raise ConfigError(
                    f"the storage contains another sweep: its {name} is {existing.get(name)}, not "
                    f"{value}. Name another --storage"
                )
        latest = _latest(study)
        for place, params in enumerate(queue):
            if place not in latest:
                study.enqueue_trial(params, user_attrs={"place": place})
        study.set_user_attr("terms", terms)
        for trial in latest.values():
            if trial.state == TrialState.FAIL and "ended" not in trial.user_attrs:
                # A process was killed between marking the attempt as failed and queueing it again.
                _queue_again(study, trial, "given back", 0.0, 0)
    return study


@contextmanager
def storage_errors() -> Iterator[None]:
    """Converts errors of a storage to RunError.

    Raises:
      RunError: the storage failed.
    """
    try:
        yield
    except (ConfigError, RunError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise RunError(
            f"the storage of the sweep failed: {_first_line(error)}. Running trials were stopped "
            "and saved; the same command resumes when it is available again"
        ) from error


def _first_line(error: Exception) -> str:
    details = getattr(error, "details", None)  # gRPC errors have this method.
    text = str(details() if callable(details) else error) or type(error).__name__
    return f"{type(error).__name__}: {text.splitlines()[0][:150]}"


def take(study: optuna.Study) -> optuna.Trial | None:
    """Starts an attempt at the next place in the queue; None if the queue is empty.

    If another machine takes the last place at the same time, Optuna creates a new trial, which is
    not part of the sweep and is discarded.
    """
    if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        return None
    trial = study.ask()
    if "place" not in trial.user_attrs:
        study.tell(trial, state=TrialState.FAIL)
        return None
    trial.set_user_attr("worker", f"{os.getpid()}@{socket.gethostname()}")
    beat(trial)
    return trial


def beat(trial: optuna.Trial) -> None:
    """Records a heartbeat."""
    trial.set_user_attr("beat", round(time.time(), 1))


def give_back(
    study: optuna.Study, trial: FrozenTrial, why: str, seconds: float = 0.0, failures: int = 0
) -> None:
    """Ends an attempt of this duration, and queues its place again with the same parameters.

    `failures` is the number of attempts so far that failed by themselves.
    """
    try:
        study.tell(trial.number, state=TrialState.FAIL)
    except (RuntimeError, ValueError):
        return  # Another machine has already ended it.
    _queue_again(study, trial, why, seconds, failures)


def _queue_again(
    study: optuna.Study, trial: FrozenTrial, why: str, seconds: float, failures: int
) -> None:
    notes = trial.user_attrs
    attributes = {name: notes[name] for name in ("place", "command") if name in notes}
    attributes |= {
        "history": [*notes.get("history", []), why],
        "failures": max(failures, notes.get("failures", 0)),
        "seconds": notes.get("seconds", 0.0) + seconds,
    }
    params = trial.params or trial.system_attrs.get("fixed_params", {})
    study.enqueue_trial(params, user_attrs=attributes)


def reap(study: optuna.Study) -> list[int]:
    """Queues the trials of dead workers again; returns their places."""
    places = []
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        pid, _, host = trial.user_attrs.get("worker", "@").partition("@")
        is_dead = host == socket.gethostname() and not is_alive(int(pid))
        started = trial.datetime_start
        last_beat = trial.user_attrs.get("beat") or (started.timestamp() if started else 0.0)
        if is_dead or time.time() - last_beat > STALE_S:
            give_back(study, trial, f"worker {pid} on {host or 'another host'} was killed")
            places.append(trial.user_attrs.get("place", -1))
    return places


def read(study: optuna.Study) -> list[Trial]:
    """Reads all places of a sweep, in order."""
    latest = _latest(study)
    return [_trial(place, latest[place]) for place in sorted(latest)]


def _latest(study: optuna.Study) -> dict[int, FrozenTrial]:
    """The latest attempt at each place."""
    trials = study.get_trials(deepcopy=False)
    return {t.user_attrs["place"]: t for t in trials if "place" in t.user_attrs}


STATES = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "waiting",
}


def _trial(place: int, trial: FrozenTrial) -> Trial:
    notes = trial.user_attrs
    curve = dict(sorted(trial.intermediate_values.items()))
    return Trial(
        number=place,
        params=trial.params or trial.system_attrs.get("fixed_params", {}),
        state=notes.get("ended", STATES[trial.state]),
        why=notes.get("why", "; ".join(notes.get("history", []))),
        val_loss=trial.value if trial.value is not None else next(reversed(curve.values()), None),
        curve=curve,
        command=notes.get("command", ""),
        seconds=notes.get("seconds", 0.0),
        flops=notes.get("flops", 0.0),
        worker=notes.get("worker", ""),
        attempts=len(notes.get("history", [])) + 1,
        windows=notes.get("windows", ""),
    )


def best(trials: Sequence[Trial]) -> Trial | None:
    """The complete trial with the lowest validation loss; the first of several equal ones."""
    complete = [
        trial for trial in trials if trial.state == "complete" and trial.val_loss is not None
    ]
    return min(complete, key=lambda trial: (trial.val_loss, trial.number), default=None)
