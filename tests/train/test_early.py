"""Early stopping: when it ends, at which state, and that a kill changes neither."""

import dataclasses
import os
import signal

import pytest
from building import changed

from gpt3jax.checkpoint.checkpointer import Checkpointer
from gpt3jax.run_dir import Changes, Run
from gpt3jax.train import early_stopping
from gpt3jax.train.early_stopping import Verdict, verdict
from gpt3jax.train.evaluation import Evaluation
from gpt3jax.train.loop import Loop
from gpt3jax.train.monitor import event_log, phase_timer
from gpt3jax.train.train import train

LOSSES = {1: 9.0, 2: 5.0, 3: 4.0, 4: 6.0, 5: 4.0, 6: 5.0, 7: 1.0, 8: 1.0}
"""Validation losses by step, as they are made to be."""


@pytest.mark.parametrize(
    ("losses", "patience", "expected"),
    [
        ([], 1, Verdict(None, False)),
        ([3.0, 2.0], 1, Verdict(2, False)),
        ([3.0, 2.0, 2.0], 1, Verdict(2, True)),
        ([3.0, 2.0, 2.5, 1.9], 2, Verdict(4, False)),
        ([3.0, 2.0, 2.5, 2.1], 2, Verdict(2, True)),
        ([3.0, 2.0, 2.5, 2.1], 0, Verdict(2, False)),
        ([None, 2.0, None, float("nan")], 2, Verdict(2, True)),
        ([None, None], 1, Verdict(None, False)),
    ],
)
def test_the_verdict_follows_from_the_losses(losses, patience, expected):
    found = list(enumerate(losses, 1))
    assert verdict(found, patience) == expected


@pytest.fixture
def patient(experiment, monkeypatch):
    """Eight steps, each measured; the losses are those above."""
    experiment = changed(
        experiment,
        model={"n_layers": 1, "d_model": 16, "n_heads": 2, "d_head": 8},
        train={"steps": 8, "patience": 3, "keep": 2, "save_every": 100},
        evaluate={"every": 1, "windows": 8, "sample_tokens": 0},
    )
    whole, steps = Evaluation.measure, {}

    def measure(self, params, is_stopping):
        found = whole(self, params, is_stopping)
        return found and found | {"val_loss": LOSSES.get(steps["at"], 0.5)}

    entered = phase_timer.PhaseTimer.enter

    def enter(self, phase, step=None):
        if phase in ("evaluate", "compile"):  # A session's first counts as compiling.
            steps["at"] = step
        entered(self, phase, step)

    monkeypatch.setattr(Evaluation, "measure", measure)
    monkeypatch.setattr(phase_timer.PhaseTimer, "enter", enter)
    return experiment


@pytest.fixture(scope="module")
def known():
    """The outcome of a run that nothing disturbs, once there was one."""
    return {}


def undisturbed(known, patient, path):
    """That outcome."""
    if not known:
        train(patient, path)
        known["outcome"] = outcome(path)
    return known["outcome"]


def outcome(path):
    """What must not depend on kills."""
    run = Run(path)
    checkpoints = Checkpointer(run.checkpoints)
    states = {step: checkpoints.manifest(step).state for step in checkpoints.steps()}
    ends = [event for event in event_log.read(run.ledger_file) if event["event"] == "early stop"]
    losses = {r["step"]: (r.get("loss"), r.get("val_loss")) for r in run.metrics()}
    return states, [(end["step"], end["patience"]) for end in ends], losses


@pytest.mark.usefixtures("one_device")
def test_a_run_ends_at_its_best_state_and_stays_there(patient, tmp_path, capsys):
    found = train(patient, tmp_path)
    assert found.position.step == 3 and found.steps_taken == 6
    states, ends, losses = outcome(tmp_path)
    assert max(states) == 3, "the first of equals; kept, though two are newer"
    assert ends == [(3, 3)] and max(losses) == 6
    worse = {path.name for path in (tmp_path / "checkpoints").glob("*.worse")}
    assert worse == {"5.worse", "6.worse"}
    assert "best at step 3 and has not improved in 3 evaluations since" in capsys.readouterr().out
    again = train(patient, tmp_path)
    assert (again.position.step, again.steps_taken) == (3, 0)
    assert outcome(tmp_path) == (states, ends, losses)
    # With more patience it goes on from there, and does the same steps again.
    more = train(changed(patient, train={"patience": 9}), tmp_path)
    assert more.position.step == 8
    assert {step: losses[step] for step in (4, 5, 6)} == {
        step: outcome(tmp_path)[2][step] for step in (4, 5, 6)
    }


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("where", ["saved", "measured", "settled", "recorded"])
@pytest.mark.in_ci("measured", "recorded")
def test_a_run_that_dies_while_it_ends_ends_the_same(patient, known, tmp_path, monkeypatch, where):
    expected = undisturbed(known, patient, tmp_path / "whole")

    class Died(BaseException):
        pass

    def die(*_, **__):
        raise Died

    with monkeypatch.context() as deadly:
        if where == "saved":
            whole = Loop._evaluate
            deadly.setattr(
                Loop, "_evaluate",
                lambda self, state: die() if self.position.step == 6 else whole(self, state),
            )  # fmt: skip
        elif where == "measured":
            deadly.setattr(Loop, "_end_early", die)
        elif where == "settled":
            aside = Checkpointer.set_aside
            deadly.setattr(
                Checkpointer, "set_aside",
                lambda self, step, why: die() if (step, why) == (6, "worse")
                else aside(self, step, why),
            )  # fmt: skip
        else:
            record = event_log.record
            deadly.setattr(
                early_stopping.event_log, "record",
                lambda path, event, **facts: die() if event == "early stop"
                else record(path, event, **facts),
            )  # fmt: skip
        with pytest.raises(Died):
            train(patient, tmp_path / "parts")
    assert train(patient, tmp_path / "parts").position.step == 3
    assert outcome(tmp_path / "parts") == expected


@pytest.mark.usefixtures("one_device")
def test_a_run_that_was_over_goes_on_when_it_is_sent_back(patient, tmp_path):
    train(patient, tmp_path)
    found = train(patient, tmp_path, changes=Changes(rewind_to=3, skip=1))
    assert found.steps_taken > 0 and found.position.step == 3
    assert [end[0] for end in outcome(tmp_path)[1]] == [3, 3], "it ended twice"


@pytest.mark.usefixtures("one_device")
def test_a_signal_in_between_does_not_change_the_end(patient, known, tmp_path, monkeypatch):
    expected = undisturbed(known, patient, tmp_path / "whole")
    sent, next_batch = [], Loop.go

    def go(self, state):
        taken = self.stepper.next_batch

        def send():
            if self.position.step == 4 and not sent:
                sent.append(os.kill(os.getpid(), signal.SIGTERM))
            return taken()

        self.stepper.next_batch = send
        return next_batch(self, state)

    monkeypatch.setattr(Loop, "go", go)
    stopped = train(patient, tmp_path / "parts")
    assert stopped.signal == signal.SIGTERM and stopped.position.step < 6
    assert train(patient, tmp_path / "parts").position.step == 3
    assert outcome(tmp_path / "parts") == expected


@pytest.mark.usefixtures("one_device")
def test_without_patience_it_goes_on_to_the_end_and_keeps_the_newest(patient, tmp_path):
    found = train(changed(patient, train={"patience": 0, "save_every": 1}), tmp_path)
    assert found.position.step == 8 and set(outcome(tmp_path)[0]) == {7, 8}


def test_patience_is_no_part_of_what_a_run_is(experiment):
    patient = changed(experiment, train={"patience": 7})
    assert patient.identity() == experiment.identity()
    assert dataclasses.replace(experiment, init_from="x").identity() != experiment.identity()
