"""A sweep of real training runs: two machines' worth of workers, one of them killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from building import changed
from compiler_flags import FAST

from gpt3jax.run_dir import Run, read_events
from gpt3jax.sweep import store

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    **os.environ, "XLA_FLAGS": FAST, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}  # fmt: skip


@pytest.fixture
def file(experiment, tmp_path):
    """An experiment file: one layer, twelve steps, three validation losses."""
    small = changed(
        experiment, model={"n_layers": 1, "d_model": 16, "n_heads": 2},
        train={"save_every": 3}, evaluate={"every": 6, "sample_tokens": 0},
    )  # fmt: skip
    path = tmp_path / "small.py"
    path.write_text(
        "from gpt3jax.config import Experiment\n\n\ndef experiment():\n"
        f"    return Experiment.from_json({small.to_json()!r})\n\n\n"
        "def space(trial):\n"
        '    rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)\n'
        '    return {"schedule.peak-learning-rate": rate}\n\n\n'
        'def first():\n    return [{"rate": 6e-4}]\n'
    )
    return path


def environment(file):
    return {**ENVIRONMENT, "JAX_COMPILATION_CACHE_DIR": str(file.parent / "compiled")}


def start(file, *words):
    """The sweep as a process; trials that compile the same step share it."""
    command = [sys.executable, "-m", "gpt3jax", "sweep", str(file), "--storage", "s.journal"]
    return subprocess.Popen(
        [*command, *words], env=environment(file), cwd=file.parent, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for(is_so, seconds=120):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def curve(path):
    return {r["tokens"]: r["val_loss"] for r in Run(path).metrics() if "val_loss" in r}


@pytest.mark.long
def test_killed_workers_are_replaced_and_their_runs_resume(file):
    """Six trials by two commands, as of two machines; one of them and a run are killed."""
    words = ("--trials", "6", "--sampler", "random", "--pruner", "none")
    victim = start(file, *words)
    runs = file.parent / "s"
    wait_for(lambda: (runs / "trial-000" / "checkpoints").exists())
    survivor = start(file, *words)
    # Of the first the sweep itself is killed, in the middle of its first trial.
    wait_for(lambda: any(r["step"] >= 1 for r in Run(runs / "trial-000").metrics()))
    os.kill(victim.pid, signal.SIGKILL)
    victim.communicate(timeout=60)
    # Of the second one, a run.
    lock = runs / "trial-001" / "lock"
    wait_for(lambda: lock.exists() and lock.read_text())
    os.kill(int(lock.read_text().split()[0]), signal.SIGKILL)
    out, _ = survivor.communicate(timeout=300)
    assert survivor.returncode == 0, out
    study = store.join(store.open_storage(str(file.parent / "s.journal")), {}, ())
    trials = store.read(study)
    assert [trial.state for trial in trials] == ["complete"] * 6
    assert [trial.attempts for trial in trials] == [2, 2, 1, 1, 1, 1]
    assert "was killed" in trials[0].why and "ended by signal 9" in trials[1].why
    for trial in trials:
        path = runs / f"trial-{trial.number:03}"
        assert trial.curve == curve(path) and len(trial.curve) == 3
        assert trial.val_loss == trial.curve[12 * 8 * 48]
        assert [r["step"] for r in Run(path).metrics()] == list(range(13))
    assert len(list(runs.glob("trial-*/"))) == 6 and (runs / "index.html").exists()
    events = read_events(runs / "trial-000/ledger.jsonl")
    assert {"start", "resume"} & {event["event"] for event in events}
    best = store.best(trials)
    assert f"command: {best.command}" in out
    # The command that is printed is the trial: alone, on all cores, it has the same bits.
    words = best.command.replace(f"s/trial-{best.number:03}", "alone").split()
    subprocess.run([sys.executable, "-m", *words], env=environment(file), cwd=file.parent,
                   check=True, capture_output=True)  # fmt: skip
    assert curve(file.parent / "alone") == best.curve
