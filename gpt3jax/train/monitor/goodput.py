"""Where a run's wall time went, by the clocks that its sessions kept.

A session is one call of `train`. At its end the ledger gets its clock: when it
began and ended, and the seconds of each phase between. The clock of the session
that runs now, or that was killed and that none has yet accounted for, is
clock.json. Units: seconds; times are seconds since 1970.
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
    ("start", "all else before the first step"),
    ("idle", "between sessions: nothing ran"),
)
"""What time goes to, and what each is; the order in which it is shown."""


@dataclass(frozen=True)
class Goodput:
    """A run's wall time, and what it went to."""

    wall_seconds: float
    """From the first session's beginning to the last one's end. Never less than the sessions
    and the pauses between them, as it would be where a host's clock was set back."""
    seconds_by_phase: dict[str, float]
    """All of PHASES, in that order; they add up to the wall time."""
    sessions: int
    killed: int
    """Sessions known to have been killed: a later one has accounted for them."""

    def shares(self) -> dict[str, float]:
        """Each phase's share of the wall time, 0 to 1."""
        return {phase: part / self.wall_seconds for phase, part in self.seconds_by_phase.items()}

    @property
    def goodput(self) -> float:
        """Share of the wall time (0 to 1) in which a step was done for the first time."""
        return self.shares()["step"]


def goodput(run: Run) -> Goodput | None:
    """Where the time of a run went so far; None where no clock was kept, or it shows no time."""
    sessions = _sessions(run)
    # A clock that was set back would give less than nothing, within a session or between two.
    lengths = [max(s["until"] - s["began"], sum(s["seconds"].values())) for s in sessions]
    pauses = [max(0.0, b["began"] - a["until"]) for a, b in itertools.pairwise(sessions)]
    wall = sum(lengths) + sum(pauses)
    if wall == 0:
        return None
    seconds = {
        phase: sum(session["seconds"].get(phase, 0.0) for session in sessions)
        for phase, _ in PHASES
    }
    # What rounding left over is idle, too.
    seconds["idle"] += max(0.0, wall - sum(seconds.values()))
    killed = sum(bool(session.get("killed")) for session in sessions)
    return Goodput(wall, seconds, len(sessions), killed)


def _sessions(run: Run) -> list[dict[str, Any]]:
    """The clocks of all sessions, each once, in their order."""
    # Read before the ledger: a session that ends just now must be in one of the two.
    current = read_clock(run)
    ended = [event for event in read_events(run.ledger_file) if event["event"] == "clock"]
    found: dict[float, dict[str, Any]] = {}
    for session in filter(is_account, [*ended, current]):
        found.setdefault(session["began"], session)
    return list(found.values())


def read_clock(run: Run) -> Any:
    """What clock.json holds; None if it is not there, or damaged."""
    try:
        return serde.read(run.clock_file)
    except (OSError, ValueError):
        return None


def is_account(clock: Any) -> bool:
    """Whether it is what a session keeps of its time, and not of another age."""
    try:
        numbers = [clock["began"], clock["until"], clock["step"], *clock["seconds"].values()]
    except (KeyError, TypeError, AttributeError):
        return False
    return all(isinstance(number, int | float) and 0 <= number < 1e12 for number in numbers)
