"""A signal in any phase: saved within a step, nothing lost, and the same words go on."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from building import changed
from kills import ENVIRONMENT, ROOT
from victim import PHASES

from gpt3jax.checkpoint.checkpointer import Checkpointer
from gpt3jax.run_dir import Run
from gpt3jax.train.monitor import event_log, phase_timer
from gpt3jax.train.resume import furthest
from gpt3jax.train.train import train

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def ticking(experiment):
    """A run in which every phase comes by."""
    return changed(
        experiment, train={"steps": 8, "save_every": 3},
        evaluate={"every": 4, "sample_tokens": 1},
    )  # fmt: skip


def signal_at(monkeypatch, phase, nth, number=signal.SIGTERM, times=2):
    """Send ourselves a signal, and another, when the main thread enters a phase."""
    entered, calls = phase_timer.PhaseTimer.enter, []

    def enter(self, now, step=None):
        calls.append(now)
        if now == phase and calls.count(phase) == nth:
            calls.append(f"signalled at {step}")
            for _ in range(times):
                os.kill(os.getpid(), number)
        entered(self, now, step)

    monkeypatch.setattr(phase_timer.PhaseTimer, "enter", enter)
    return calls


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Where the run that nobody stops is kept for all these tests."""
    return tmp_path_factory.mktemp("whole") / "run"


@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_in_any_phase_costs_nothing(ticking, tmp_path, monkeypatch, phase, whole):
    train(ticking, whole)
    nth = 1 if phase in ("start", "restore", "compile") else 2
    signal_at(monkeypatch, phase, nth)
    stopped = train(ticking, tmp_path / "run")
    monkeypatch.undo()
    assert stopped.signal == signal.SIGTERM
    assert furthest(Checkpointer(tmp_path / "run" / "checkpoints")) == stopped.position
    logged = [record["step"] for record in Run(tmp_path / "run").metrics()]
    assert max(logged, default=0) == stopped.position.step, "no step was taken and lost"
    train(ticking, tmp_path / "run")
    assert numbers(tmp_path / "run") == numbers(whole)


def numbers(path):
    exact = ("step", "loss", "grad_norm", "val_loss", "val_bits_per_byte")
    return [[record.get(name) for name in exact] for record in Run(path).metrics()]


def test_a_signal_ends_a_run_within_a_step(ticking, tmp_path, monkeypatch):
    calls = signal_at(monkeypatch, "data", 4)
    stopped = train(changed(ticking, train={"steps": 1000}), tmp_path)
    assert "signalled at 3" in calls
    assert stopped.position.step == 4, "the step it came in is the last"


def test_an_evaluation_is_left_at_a_signal_and_made_up_for(ticking, tmp_path, monkeypatch):
    signal_at(monkeypatch, "evaluate", 1)
    stopped = train(ticking, tmp_path)
    assert stopped.position.step == 4
    assert "val_loss" not in Run(tmp_path).metrics()[-1]
    monkeypatch.undo()
    train(ticking, tmp_path)
    assert [r["step"] for r in Run(tmp_path).metrics() if "val_loss" in r] == [0, 4, 8]
    assert (tmp_path / "samples" / "4.txt").exists()


def test_an_evaluation_that_a_kill_took_from_a_finished_run_is_made_up_for(ticking, tmp_path):
    train(ticking, tmp_path)
    kept = [line for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert "val_loss" in kept[-1]
    (tmp_path / "metrics.jsonl").write_text("\n".join(kept[:-1]) + "\n")
    assert train(ticking, tmp_path).steps_taken == 0
    assert "val_loss" in Run(tmp_path).metrics()[-1]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_hangup_and_ctrl_c_stop_as_sigterm_does(ticking, tmp_path, monkeypatch, number):
    signal_at(monkeypatch, "step", 2, number)
    # These tests may themselves run under nohup.
    before = signal.signal(number, signal.default_int_handler)
    try:
        assert train(ticking, tmp_path).signal == number
    finally:
        signal.signal(number, before)


def test_a_hangup_is_ignored_under_nohup(ticking, tmp_path, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signal_at(monkeypatch, "step", 2, signal.SIGHUP)
        assert train(ticking, tmp_path).signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_training_goes_on_when_nobody_reads_and_the_exit_code_says_how_it_ended(ticking, tmp_path):
    """`| head -1` closes the pipe after a line; then SIGTERM, whose exit code is 143."""
    file = tmp_path / "experiment.py"
    endless = changed(ticking, train={"steps": 100_000})
    file.write_text(
        "from gpt3jax.config import Experiment\n\n\ndef experiment():\n"
        f"    return Experiment.from_json({endless.to_json()!r})\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt3jax", "train", str(file), "--run", str(tmp_path / "run")],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert any(line.startswith("step") for line in process.stdout)
    process.stdout.close()
    run, deadline = Run(tmp_path / "run"), time.monotonic() + 60
    while not any(record["step"] > 30 for record in run.metrics()):
        assert time.monotonic() < deadline and process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert process.stderr.read() == ""
    assert event_log.read(run.ledger_file)[-2]["signal"] == signal.SIGTERM


def test_every_second_of_a_run_is_accounted_for(ticking, tmp_path, monkeypatch):
    """Over two sessions; what the phases add up to is the time by another clock."""
    monkeypatch.setattr(phase_timer, "TICK_S", 0.05)
    began = time.time()
    train(changed(ticking, train={"steps": 4}), tmp_path)
    time.sleep(0.5)
    train(ticking, tmp_path)
    ended = time.time()
    sessions = [
        each for each in event_log.read(tmp_path / "ledger.jsonl") if each["event"] == "clock"
    ]
    assert len(sessions) == 2 and not (tmp_path / "clock.json").exists()
    counted = sum(sum(each["seconds"].values()) for each in sessions)
    idle = sessions[1]["began"] - sessions[0]["until"]
    np.testing.assert_allclose(counted + idle, ended - began, rtol=0.01, atol=0.05)
    for phase in ("start", "compile", "data", "step", "save", "evaluate"):
        assert sessions[0]["seconds"][phase] > 0, phase
    assert sessions[1]["seconds"]["restore"] > 0


def test_steps_that_a_kill_undid_count_as_done_again(ticking, tmp_path):
    train(changed(ticking, train={"steps": 3}), tmp_path)
    account = {"began": time.time() - 60, "until": time.time() - 50, "step": 7,
               "seconds": {"step": 10.0}}  # fmt: skip
    (tmp_path / "clock.json").write_text(json.dumps(account))
    train(ticking, tmp_path)
    killed, last = [e for e in event_log.read(tmp_path / "ledger.jsonl") if e["event"] == "clock"][
        1:
    ]
    assert killed["killed"] and killed["seconds"] == {"step": 10.0}
    assert last["seconds"]["replay"] > 0 and last["seconds"]["step"] > 0
