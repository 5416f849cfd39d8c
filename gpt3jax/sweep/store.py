"""Where a sweep is kept: an Optuna study that several machines may share.

A sweep has places, one for each trial that was asked for. They are queued when it
begins, so that there are exactly so many, whoever takes them. A trial of Optuna
is an attempt at a place: where its worker is killed or fails, it is told as failed
and the place is queued again, with the same values; its run goes on. An attempt
whose worker has given no sign of life for `STALE_S` is taken to be killed.
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
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from gpt3jax.errors import ConfigError, RunError
from gpt3jax.runtime.atomic_folder import is_alive
from gpt3jax.sweep.space import Params

BEAT_S = 15.0
"""Seconds between two signs of life of a worker."""
STALE_S = 120.0
"""Seconds without one after which its trial is given to another."""
TRIES = 3
"""Attempts that may fail before a trial has failed."""
WAIT_S = 20.0
"""Seconds for a server, or for whoever makes a sweep, to be ready."""
NAME = "sweep"
"""Of the one study in a storage."""

Ended = Literal["complete", "pruned", "diverged", "failed"]


@dataclass(frozen=True)
class Trial:
    """A place of a sweep, by the latest attempt at it."""

    number: int
    """From 0; its run is trial-NUMBER."""
    params: Params
    state: str
    """waiting, running, or how it `Ended`."""
    why: str
    """It ended so, where it is not complete; or what became of earlier attempts."""
    val_loss: float | None
    """Nats/token: the last one measured, of a trial that diverged the last finite one."""
    curve: dict[int, float]
    """Validation loss, nats/token, by tokens seen."""
    command: str
    seconds: float
    """Of one worker, over all attempts that ended."""
    flops: float
    """Of training, by the tokens seen."""
    worker: str
    attempts: int
    windows: str = ""
    """Over how many held-out windows val_loss is, in words."""

    @property
    def is_over(self) -> bool:
        return self.state not in ("waiting", "running")


def open_storage(name: str) -> optuna.storages.BaseStorage:
    """A storage: FILE.journal (in a shared folder, too), FILE.db, or grpc://HOST:PORT.

    Raises:
      ConfigError: it cannot be opened, or is none of them.
    """
    path = Path(name)
    if name.startswith("grpc://"):
        return _join_server(name)
    if path.suffix not in (".journal", ".db"):
        raise ConfigError(
            f"--storage {name} is of no kind that is known: it is FILE.journal, FILE.db or "
            "grpc://HOST:PORT. Rename it"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".db":
            return optuna.storages.get_storage(f"sqlite:///{path}")
        path.open("a").close()
        backend = optuna.storages.journal.JournalFileBackend(str(path))
        return optuna.storages.JournalStorage(backend)
    except Exception as error:
        raise ConfigError(
            f"--storage {name} cannot be read: {_first_line(error)}. Restore it, or name another"
        ) from error


def _join_server(name: str) -> optuna.storages.BaseStorage:
    host, _, port = name.removeprefix("grpc://").rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"--storage {name} is no address: it is grpc://HOST:PORT. Change it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = optuna.storages.GrpcStorageProxy(host=host, port=int(port))
        storage.wait_server_ready(timeout=WAIT_S)
    except ImportError as error:
        raise ConfigError(f"--storage {name} needs grpcio. pip install 'gpt3jax[sweep]'") from error
    except ConnectionError as error:
        raise ConfigError(
            f"--storage {name} does not answer: nobody serves it, or something lies between. Start "
            "the sweep there with --serve first"
        ) from error
    return storage


@contextmanager
def serving(name: str, address: str) -> Iterator[optuna.storages.BaseStorage]:
    """Let other machines join through this one, until the end of the block.

    One thread answers all, us too: SQLite does not lock rows, so that of two who ask
    at once both would get the same trial (optuna 5.0).

    Args:
      name: FILE.db. Not a journal, which loses attempts when served (optuna/optuna#6084).
      address: HOST:PORT to listen on. Whoever reaches it can write to the storage.

    Raises:
      ConfigError: it cannot be served.
    """
    host, _, port = address.rpartition(":")
    if not name.endswith(".db"):
        raise ConfigError(
            f"--serve {address} needs a storage FILE.db: a journal cannot be served. Add "
            "--storage sweeps/NAME.db"
        )
    if not host or not port.isdecimal():
        raise ConfigError(f"--serve {address} is no address: it is HOST:PORT. Change it")
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
            here = "127.0.0.1" if host in ("0.0.0.0", "[::]") else host
            yield _join_server(f"grpc://{here}:{port}")
        finally:
            server.stop(grace=2.0)


def join(
    storage: optuna.storages.BaseStorage, terms: dict[str, Any], queue: Sequence[Params]
) -> optuna.Study:
    """The study of a sweep: made, or the one that is there.

    Args:
      storage: where it is.
      terms: what all who join must agree on.
      queue: values that are set of each place; {}: all are drawn. Places that are not there yet
        are added; none is taken away.

    Raises:
      ConfigError: another sweep is there, or the storage is damaged.
    """
    with told("the storage"):
        try:
            study = optuna.create_study(storage=storage, study_name=NAME)
        except optuna.exceptions.DuplicatedStudyError:
            study = optuna.load_study(storage=storage, study_name=NAME)
            deadline = time.monotonic() + WAIT_S
            while "terms" not in study.user_attrs and time.monotonic() < deadline:
                time.sleep(0.1)  # Whoever makes it is not ready yet; or was killed.
        found = study.user_attrs.get("terms", terms)
        for name, value in terms.items():
            if found.get(name) != value:
                raise ConfigError(
                    f"another sweep is there: its {name} is {found.get(name)}, not {value}. Name "
                    "another --storage"
                )
        there = _latest(study)
        for place, params in enumerate(queue):
            if place not in there:
                study.enqueue_trial(params, user_attrs={"place": place})
        study.set_user_attr("terms", terms)
        for trial in there.values():
            if trial.state == TrialState.FAIL and "ended" not in trial.user_attrs:
                # Who gave it back was killed before it was in the queue.
                _queue_again(study, trial, "given back", 0.0, 0)
    return study


@contextmanager
def told(what: str) -> Iterator[None]:
    """What goes wrong with a storage, in words.

    Raises:
      RunError: it went wrong.
    """
    try:
        yield
    except (ConfigError, RunError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise RunError(
            f"{what} of the sweep failed: {_first_line(error)}. Trials under way were stopped and "
            "saved; the same command goes on when it is there again"
        ) from error


def _first_line(error: Exception) -> str:
    details = getattr(error, "details", None)  # Of gRPC.
    text = str(details() if callable(details) else error) or type(error).__name__
    return f"{type(error).__name__}: {text.splitlines()[0][:150]}"


def take(study: optuna.Study) -> optuna.Trial | None:
    """The next place in the queue, as an attempt of ours; None if there is none.

    Another machine may take the last place at the same time: what Optuna makes up
    for us then is not part of the sweep.
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
    """Give a sign of life."""
    trial.set_user_attr("beat", round(time.time(), 1))


def give_back(
    study: optuna.Study, trial: FrozenTrial, why: str, seconds: float = 0.0, failures: int = 0
) -> None:
    """End an attempt, and queue its place again with the same values.

    Args:
      study: of the sweep.
      trial: the attempt.
      why: it ended.
      seconds: that it took.
      failures: how many of the attempts so far were its own fault.
    """
    try:
        study.tell(trial.number, state=TrialState.FAIL)
    except (RuntimeError, ValueError):
        return  # Somebody else was faster.
    _queue_again(study, trial, why, seconds, failures)


def _queue_again(
    study: optuna.Study, trial: FrozenTrial, why: str, seconds: float, failures: int
) -> None:
    notes = trial.user_attrs
    kept = {name: notes[name] for name in ("place", "command") if name in notes}
    kept |= {
        "history": [*notes.get("history", []), why],
        "failures": max(failures, notes.get("failures", 0)),
        "seconds": notes.get("seconds", 0.0) + seconds,
    }
    params = trial.params or trial.system_attrs.get("fixed_params", {})
    study.enqueue_trial(params, user_attrs=kept)


def reap(study: optuna.Study) -> list[int]:
    """Give back what killed workers have left behind; returns the places."""
    found = []
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        pid, _, host = trial.user_attrs.get("worker", "@").partition("@")
        is_dead = host == socket.gethostname() and not is_alive(int(pid))
        last = trial.user_attrs.get("beat") or trial.datetime_start.timestamp()
        if is_dead or time.time() - last > STALE_S:
            give_back(study, trial, f"worker {pid} on {host or 'another host'} was killed")
            found.append(trial.user_attrs.get("place", -1))
    return found


def read(study: optuna.Study) -> list[Trial]:
    """The places of a sweep, in order."""
    latest = _latest(study)
    return [_trial(place, latest[place]) for place in sorted(latest)]


def _latest(study: optuna.Study) -> dict[int, FrozenTrial]:
    """The latest attempt at each place."""
    trials = study.get_trials(deepcopy=False)
    return {t.user_attrs["place"]: t for t in trials if "place" in t.user_attrs}


STATES = {
    TrialState.WAITING: "waiting", TrialState.RUNNING: "running", TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned", TrialState.FAIL: "waiting",
}  # fmt: skip


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
    """The complete trial with the lowest validation loss; of equals, the first."""
    done = [trial for trial in trials if trial.state == "complete" and trial.val_loss is not None]
    return min(done, key=lambda trial: (trial.val_loss, trial.number), default=None)
