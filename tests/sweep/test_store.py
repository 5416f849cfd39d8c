"""The storage that machines share: who joins, who is reaped, and what is refused in words."""

import socket
import subprocess
import sys
import threading
import time

import optuna
import pytest
from optuna.storages._rdb.models import TrialModel
from optuna.trial import TrialState

from gpt3jax.errors import ConfigError, RunError
from gpt3jax.sweep import store

optuna.logging.set_verbosity(optuna.logging.ERROR)
TERMS = {"seed": 0, "sampler": "tpe"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def name(tmp_path):
    return str(tmp_path / "x.journal")


def joined(name, queue=({"x": 1.0}, {}, {})):
    return store.join(store.open_storage(name), TERMS, queue)


def attempt(study):
    trial = store.take(study)
    trial.suggest_float("x", 0, 2)
    return trial


def test_joining_finds_the_same_places_and_can_add_more(name):
    first, second = joined(name), joined(name)
    assert [t.number for t in store.read(second)] == [0, 1, 2]
    assert store.read(second)[0].params == {"x": 1.0}
    taken = [attempt(study).user_attrs["place"] for study in (first, second, first)]
    assert taken == [0, 1, 2] and store.take(second) is None
    joined(name, ({}, {}, {}, {}))
    assert [t.state for t in store.read(first)] == ["running"] * 3 + ["waiting"]
    with pytest.raises(ConfigError, match="its seed is 0, not 1. Name another --storage"):
        store.join(store.open_storage(name), TERMS | {"seed": 1}, ())


def test_the_trial_of_a_killed_worker_is_queued_again_with_its_params(name):
    study = joined(name)
    trial = attempt(study)
    assert store.reap(study) == []
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    trial.set_user_attr("worker", f"{dead.pid}@{socket.gethostname()}")
    assert store.reap(study) == [0] and store.reap(study) == []
    found = store.read(study)[0]
    assert (found.state, found.params, found.attempts) == ("waiting", {"x": 1.0}, 2)
    assert f"worker {dead.pid}" in found.why
    assert [attempt(study).user_attrs["place"] for _ in range(3)] == [1, 2, 0]
    assert store.take(study) is None


def test_a_remote_worker_without_heartbeat_is_dead(name, monkeypatch):
    study = joined(name)
    trial = attempt(study)
    trial.set_user_attr("worker", "1@another-host")
    assert store.reap(study) == []
    trial.set_user_attr("beat", time.time() - store.STALE_S - 1)
    assert store.reap(study) == [0]
    # The attempt that was given away cannot be told any more, nor given back twice.
    with pytest.raises(store.optuna.exceptions.UpdateFinishedTrialError):
        trial.report(1.0, 1)
    store.give_back(study, study.get_trials()[trial.number], "again")
    assert len(study.get_trials(states=(TrialState.WAITING,))) == 3


def test_a_failed_place_not_queued_again_is_recovered_at_the_next_start(name):
    study = joined(name)
    trial = attempt(study)
    study.tell(trial, state=TrialState.FAIL)
    assert len(study.get_trials(states=(TrialState.WAITING,))) == 2
    assert store.read(joined(name))[0].state == "waiting"
    assert len(study.get_trials(states=(TrialState.WAITING,))) == 3


def test_best_is_the_first_complete_trial_with_the_lowest_loss(name):
    study = joined(name)
    assert store.best(store.read(study)) is None
    trials = [attempt(study) for _ in range(3)]
    trials[0].report(0.1, 100)
    study.tell(trials[0], state=TrialState.PRUNED)
    for trial in trials[1:]:
        study.tell(trial, 2.0)
    assert store.best(store.read(study)).number == 1
    assert store.read(study)[0].val_loss == 0.1


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        ("x.txt", "of an unknown kind"),
        ("grpc://here", "is not an address"),
        ("grpc://127.0.0.1:99999", "is not an address"),
        ("folder.journal", "cannot be read"),
        ("file/x.journal", "cannot be read"),
        ("damaged.db", "cannot be read"),
    ],
)
def test_an_invalid_storage_is_rejected(tmp_path, monkeypatch, storage, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.journal").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "damaged.db").write_text("this is no database\n" * 99)
    with pytest.raises(ConfigError, match=words) as refusal:
        store.open_storage(storage)
    assert "\n" not in str(refusal.value)


def test_a_damaged_journal_and_an_unreachable_server_are_reported(tmp_path, monkeypatch):
    (tmp_path / "x.journal").write_text("{not json}\n")
    with pytest.raises((ConfigError, RunError), match="the storage|cannot be read"):
        joined(str(tmp_path / "x.journal"))
    monkeypatch.setattr(store, "WAIT_S", 0.2)
    with pytest.raises(ConfigError, match="does not answer"):
        store.open_storage(f"grpc://127.0.0.1:{free_port()}")


def test_machines_without_a_shared_disk_join_through_a_server(tmp_path, monkeypatch):
    """Four ask at once, again and again; none gets what another has."""
    found = TrialModel.find_or_raise_by_id

    def slow(*words, **named):
        row = found(*words, **named)
        time.sleep(0.02)  # Between the look whether a trial is free and the taking of it.
        return row

    monkeypatch.setattr(TrialModel, "find_or_raise_by_id", slow)
    address = f"127.0.0.1:{free_port()}"
    name = str(tmp_path / "x.db")
    with store.serving(name, address) as storage:
        here = store.join(storage, TERMS, [{} for _ in range(8)])
        places, clients = [], [joined(f"grpc://{address}", ()) for _ in range(3)]

        at_once = threading.Barrier(4, timeout=30)

        def work(study):
            while at_once.wait() >= 0 and (trial := store.take(study)):
                value = trial.suggest_float("x", 0, 2)
                trial.report(value, 1)
                places.append(trial.user_attrs["place"])
                study.tell(trial, value)

        threads = [threading.Thread(target=work, args=(study,)) for study in (here, *clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(places) == list(range(8))
        assert {t.state for t in store.read(here)} == {"complete"}
        again = f"127.0.0.1:{free_port()}"
        with pytest.raises(ConfigError, match="served already"), store.serving(name, again):
            pass


def test_a_journal_is_not_served(name):
    with (
        pytest.raises(ConfigError, match=r"needs a storage FILE\.db"),
        store.serving(name, "127.0.0.1:0"),
    ):
        pass
