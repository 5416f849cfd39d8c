"""Where the wall time went: each second between the first beginning and the last end, once."""

import json
import random
from pathlib import Path

import pytest

from gpt3jax.run_dir import Run
from gpt3jax.train.monitor.goodput import PHASES, goodput

BEGAN = 1_700_000_000.0


def session(began: float, until: float, *, killed: bool | None = None, **seconds: float) -> dict:
    """A clock as training keeps it; began and until are seconds after BEGAN."""
    clock = {"began": BEGAN + began, "until": BEGAN + until, "step": 7, "seconds": seconds}
    if killed is None:
        return clock
    return {"event": "clock", "time": BEGAN + until, **clock, "killed": killed}


def run_of(path: Path, *events: dict, clock: dict | None = None, tail: str = "") -> Run:
    run = Run(path)
    lines = [json.dumps({"event": "start", "time": BEGAN, "step": 0}), *map(json.dumps, events)]
    run.ledger_file.write_text("".join(line + "\n" for line in lines) + tail)
    if clock:
        run.clock_file.write_text(json.dumps(clock))
    return run


def spent_on(run: Run) -> dict[str, float]:
    """The phases that took any time, after a look at what holds for every run."""
    found = goodput(run)
    assert list(found.seconds_by_phase) == [phase for phase, _ in PHASES]
    assert sum(found.seconds_by_phase.values()) == pytest.approx(found.wall_seconds, rel=1e-6)
    assert sum(found.shares().values()) == pytest.approx(1, rel=1e-6)
    assert found.goodput == found.seconds_by_phase["step"] / found.wall_seconds
    assert min(found.seconds_by_phase.values()) >= 0
    return {phase: s for phase, s in found.seconds_by_phase.items() if s > 1e-6}


def test_of_one_session_every_second_is_in_its_phase(tmp_path):
    parts = {"start": 2.0, "compile": 10.0, "step": 80.0, "data": 1.0, "save": 3.0, "evaluate": 4.0}
    run = run_of(tmp_path, session(0, 100, killed=False, **parts))
    assert spent_on(run) == parts
    found = goodput(run)
    assert (found.wall_seconds, found.goodput) == (100, 0.8)
    assert (found.sessions, found.killed) == (1, 0)


def test_between_sessions_the_run_is_idle_and_steps_done_again_are_no_goodput(tmp_path):
    run = run_of(
        tmp_path,
        session(0, 100, killed=True, start=10.0, step=90.0),
        session(150, 200, killed=False, restore=5.0, replay=15.0, step=30.0),
        session(1000, 1010, killed=False, step=10.0),
    )
    assert spent_on(run) == pytest.approx(
        {"step": 130, "replay": 15, "restore": 5, "start": 10, "idle": 850}
    )
    found = goodput(run)
    assert (found.wall_seconds, found.sessions, found.killed) == (1010, 3, 1)


def test_a_session_that_runs_or_was_killed_just_now_counts_as_far_as_its_clock_goes(tmp_path):
    first = session(0, 100, killed=False, step=100.0)
    current = session(130, 150, start=4.0, step=16.0)
    run = run_of(tmp_path, first, clock=current)
    assert spent_on(run) == pytest.approx({"step": 116, "start": 4, "idle": 30})
    assert (goodput(run).sessions, goodput(run).killed) == (2, 0)
    alone = run_of(tmp_path, clock=current)
    assert (goodput(alone).wall_seconds, goodput(alone).sessions) == (20, 1)


def test_a_killed_session_that_the_next_one_has_accounted_for_counts_once(tmp_path):
    killed = session(0, 100, step=100.0)
    accounted = {"event": "clock", "time": BEGAN + 300, **killed, "killed": True}
    run = run_of(tmp_path, accounted, clock=killed)
    assert spent_on(run) == {"step": 100}
    assert (goodput(run).sessions, goodput(run).killed) == (1, 1)


def test_a_clock_that_was_set_back_takes_no_time_away(tmp_path):
    between = run_of(
        tmp_path,
        session(0, 100, killed=False, step=100.0),
        session(40, 60, killed=False, step=20.0),
        session(70, 80, killed=False, step=10.0),
    )
    assert spent_on(between) == {"step": 130, "idle": 10}
    within = run_of(tmp_path, session(50, 20, killed=False, step=25.0, data=5.0))
    assert spent_on(within) == {"step": 25, "data": 5}


def test_what_rounding_leaves_over_is_idle(tmp_path):
    draw = random.Random(0)
    events, at = [], 0.0
    for _ in range(500):
        parts = {phase: draw.expovariate(0.1) for phase, _ in PHASES if phase != "idle"}
        until = at + sum(parts.values())
        rounded = {phase: round(seconds, 1) for phase, seconds in parts.items()}
        events.append(session(at, until, killed=False, **rounded))
        at = until
    run = run_of(tmp_path, *events)
    assert 0 < spent_on(run)["idle"] < 500 * 8 * 0.05
    assert goodput(run).wall_seconds == pytest.approx(at, abs=500 * 8 * 0.05)


def test_half_written_lines_are_passed_over(tmp_path):
    whole = session(0, 100, killed=False, step=100.0)
    cut = json.dumps(session(100, 200, killed=False, step=100.0))[:-9]
    run = run_of(tmp_path, whole, tail=cut)
    run.clock_file.write_text('{"began": 17000')
    assert spent_on(run) == {"step": 100}
    # The next event went onto the same line.
    run.ledger_file.write_text(cut + json.dumps(whole) + "\n" + json.dumps(whole) + "\n")
    assert spent_on(run) == {"step": 100}


def test_without_a_clock_there_is_nothing_to_tell(tmp_path):
    assert goodput(Run(tmp_path)) is None
    assert goodput(run_of(tmp_path)) is None
    assert goodput(run_of(tmp_path, clock=session(0, 0))) is None, "no time has passed"
