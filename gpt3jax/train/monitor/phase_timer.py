"""Phase timer and watchdog of a training session.

Every second of a session belongs to one phase. A thread writes the totals to clock.json about once
a second, so that they survive a kill; the next session appends them to the event log.

A watchdog thread ends a process that makes no progress: in a job of many hosts, one that hangs (on
a disk, a lock or a peer) makes all of them hang. Usually the culprit is the host whose phase is not
`step`. The watchdog does no I/O itself, since the disk may be what hangs.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from gpt3jax.run_dir import Run
from gpt3jax.sharding import processes
from gpt3jax.train.monitor import event_log
from gpt3jax.train.monitor.goodput import is_account, read_clock

Phase = Literal["start", "restore", "compile", "data", "step", "replay", "save", "evaluate"]
"""`replay`: steps that an earlier session had already done, but not saved."""

TICK_S = 1.0
REPORT_S = 5.0
"""Time to print and write the report of a stuck process before it ends, seconds."""
STUCK_EXIT = 70
LONGER = {
    "start": 6.0, "restore": 6.0, "compile": 6.0, "evaluate": 6.0, "save": 6.0,
    "step": 2.0, "replay": 2.0,
}  # fmt: skip
"""Factors on the time limit of phases. In a step a host may be waiting for the others, so its limit
is longer, and the host that hangs in another phase reports first."""


class PhaseTimer:
    """The phases of one session of training."""

    def __init__(self, run: Run, began: float, stuck_after: float = 0.0):
        """Start the threads.

        Args:
          run: the run; process 0 writes its clock.json.
          began: start of the session, seconds since 1970.
          stuck_after: time limit of a phase in seconds, after which the watchdog ends the process;
            0 disables it.
        """
        self._run, self._stuck_after = run, stuck_after
        self._began, self._zero = began, time.monotonic() - max(0.0, time.time() - began)
        self._seconds: dict[str, float] = {}
        self._phase, self._since, self._step = "start", self._zero, 0
        self._entered = 0
        self._lock, self._closed = threading.Lock(), threading.Event()
        # Computed here, since the threads must not wait for JAX's locks.
        self._name, self._report = processes.name(), run.stuck_file(processes.index())
        self._writer = _start(self._write_loop, "clock") if processes.is_first() else None
        self._ended = threading.Event()
        if stuck_after:
            _start(self._watch, "watchdog")

    def enter(self, phase: Phase, step: int | None = None) -> None:
        """Enter a phase; `step` is the last completed step. Called by the main thread."""
        with self._lock:
            now = time.monotonic()
            self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
            self._phase, self._since, self._entered = phase, now, self._entered + 1
            self._step = self._step if step is None else step

    def account(self) -> dict[str, Any]:
        """The clock of the session so far: start, end, step, and seconds by phase."""
        with self._lock:
            now = time.monotonic()
            seconds = dict(self._seconds)
            seconds[self._phase] = seconds.get(self._phase, 0.0) + now - self._since
            return {
                "began": round(self._began, 3),
                "until": round(self._began + now - self._zero, 3),
                "step": self._step,
                "seconds": {phase: round(value, 3) for phase, value in seconds.items()},
            }

    def close(self) -> None:
        """End the session, and append its clock to the event log."""
        self._closed.set()
        try:
            if self._writer:
                self._writer.join()
                event_log.record(self._run.ledger_file, "clock", **self.account(), killed=False)
                self._run.clock_file.unlink(missing_ok=True)
        finally:  # The watchdog runs until here, since the disk may hang in this, too.
            self._ended.set()

    def _write_loop(self) -> None:
        while not self._closed.wait(TICK_S):
            with contextlib.suppress(OSError):  # A full disk does not stop the run.
                self._write()

    def _watch(self) -> None:
        # Counted in ticks, so that the time of a suspended process does not count.
        tick = min(TICK_S, self._stuck_after / 4)
        seen, lasted = self._entered, 0.0
        while not self._ended.wait(tick):
            lasted = lasted + tick if self._entered == seen else 0.0
            seen, phase = self._entered, self._phase
            if self._stuck_after * LONGER.get(phase, 1.0) < lasted:
                self._end(phase, lasted)

    def _write(self) -> None:
        # No fsync: a power failure may lose the last seconds.
        new = self._run.clock_file.with_suffix(".new")
        new.write_text(json.dumps(self.account()))
        os.replace(new, self._run.clock_file)

    def _end(self, phase: str, lasted: float) -> None:
        """Write the stacks of all threads to a report and end the process within `REPORT_S`."""

        def say(text: str) -> None:
            print(f"error: {text}", file=sys.stderr, flush=True)

        def report() -> None:
            head = f"{self._name}, phase {phase}, after step {self._step}"
            try:
                self._report.write_text(f"{head}\n{_stacks()}\n")
            except OSError as error:
                say(f"{self._report} was not written: {error}")

        text = (
            f"{self._name} is stuck in phase {phase} for {lasted:.0f} s after step {self._step}: "
            f"all hosts end. Stacks are in {self._report}, if it can be written; relaunch to resume"
        )
        try:
            deadline = time.monotonic() + REPORT_S
            for each in [_start(partial(say, text), "say"), _start(report, "report")]:
                each.join(max(0.0, deadline - time.monotonic()))
        finally:
            os._exit(STUCK_EXIT)


def _start(work: Callable[[], None], name: str) -> threading.Thread:
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread


def _stacks() -> str:
    """The stacks of all threads as text. Not by faulthandler, which writes while it holds the GIL,
    so that a file that hangs would stop every thread."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    lines = []
    for thread, innermost in sys._current_frames().items():
        lines.append(f"thread {names.get(thread, thread)}, innermost call first:")
        for frame, line in traceback.walk_stack(innermost):
            code = frame.f_code
            lines.append(f'  File "{code.co_filename}", line {line} in {code.co_name}')
    return "\n".join(lines)


def close_interrupted_session(run: Run) -> int:
    """Append the clock of a killed session to the event log; returns the furthest step so far."""
    events, last = event_log.read(run.ledger_file), read_clock(run)
    clocks = [event for event in events if event["event"] == "clock" and is_account(event)]
    if is_account(last) and last["began"] not in [clock["began"] for clock in clocks]:
        account = {name: last[name] for name in ("began", "until", "step", "seconds")}
        event_log.record(run.ledger_file, "clock", **account, killed=True)
        clocks.append(account)
    with contextlib.suppress(OSError):
        run.clock_file.unlink()
    return max((clock["step"] for clock in clocks), default=0)
