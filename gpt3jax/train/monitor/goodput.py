"""Goodput: the wall time of a run by phase, from the clocks of its sessions.

A session is one call of `train`. At its end its clock is appended to the event log: the times of
its start and end, and the seconds of each phase. The clock of the current session, or of a killed
one that is not in the event log yet, is clock.json. Units: seconds; times are seconds since 1970.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from gpt3jax import serde
from gpt3jax.run_dir import Run, read_events

PHASES = (
    ("step", "training: each step, the first time it was done"),
    ("replay", "steps done again, because an earlier session had lost them"),
    ("data", "waiting for the next batch"),
    ("evaluate", "validation loss and samples"),
    ("save", "checkpoints, as far as training waited for them"),
    ("compile", "a session's first step and first evaluation, which are compiled"),
    ("restore", "reading a checkpoint"),
    ("start", "all else, most of it before the first step"),
    ("idle", "between sessions: nothing ran"),
)
"""Phases and their descriptions, in the order in which they are shown."""


@dataclass(frozen=True)
class Goodput:
    """The wall time of a run by phase."""

    wall_seconds: float
    """From the start of the first session to the end of the last. At least the sum of all sessions
    and pauses, even if a host's clock was set back."""
    seconds_by_phase: dict[str, float]
    """All of PHASES, in that order; they add up to the wall time."""
    sessions: int
    killed: int
    """Number of killed sessions that a later session has recorded."""

    def shares(self) -> dict[str, float]:
        """Each phase's share of the wall time, 0 to 1."""
        return {phase: part / self.wall_seconds for phase, part in self.seconds_by_phase.items()}

    @property
    def goodput(self) -> float:
        """Fraction of the wall time (0 to 1) spent in steps that were done for the first time."""
        return self.shares()["step"]


def goodput(run: Run) -> Goodput | None:
    """The goodput of a run so far; None if no time was recorded."""
    sessions = _sessions(run)
    # Clocks that were set back would give negative times, within or between sessions.
    lengths = [max(s["until"] - s["began"], sum(s["seconds"].values())) for s in sessions]
    pauses = [max(0.0, b["began"] - a["until"]) for a, b in itertools.pairwise(sessions)]
    wall = sum(lengths) + sum(pauses)
    if wall == 0:
        return None
    seconds: dict[str, float] = {
        phase: sum(session["seconds"].get(phase, 0.0) for session in sessions)
        for phase, _ in PHASES
    }
    # Rounding errors count as idle.
    seconds["idle"] += max(0.0, wall - sum(seconds.values()))
    killed = sum(bool(session.get("killed")) for session in sessions)
    return Goodput(wall, seconds, len(sessions), killed)


def _sessions(run: Run) -> list[dict[str, Any]]:
    """The clock of each session, in order."""
    # Read before the event log, so that a session that ends now is in one of the two.
    current = read_clock(run)
    ended = [event for event in read_events(run.ledger_file) if event["event"] == "clock"]
    sessions: dict[float, dict[str, Any]] = {}
    for session in filter(is_account, [*ended, current]):
        sessions.setdefault(session["began"], session)
    return list(sessions.values())


def read_clock(run: Run) -> Any:
    """The content of clock.json; None if it is missing or damaged."""
    try:
        return serde.read(run.clock_file)
    except (OSError, ValueError):
        return None


def is_account(clock: Any) -> bool:
    """Whether a JSON value is a valid clock of a session."""
    try:
        numbers = [clock["began"], clock["until"], clock["step"], *clock["seconds"].values()]
    except (KeyError, TypeError, AttributeError):
        return False
    return all(isinstance(number, int | float) and 0 <= number < 1e12 for number in numbers)
