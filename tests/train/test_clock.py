"""The watchdog ends a process that is stuck, though the disk or the terminal hangs."""

import subprocess
import sys
import time

import pytest

PROGRAM = """
import os, sys, time
from pathlib import Path

from gpt3jax.run_dir import Run
from gpt3jax.train.monitor import phase_timer

folder, case = Path(sys.argv[1]), sys.argv[2]
phase_timer.TICK_S, phase_timer.REPORT_S = 0.05, 1.0
if case in ("disk", "close"):
    os.mkfifo(folder / "clock.new")  # Opening one that nobody reads waits for ever.
if case == "disk":
    os.mkfifo(folder / "stuck-0.txt")
if case == "refused":
    (folder / "clock.new").mkdir()
    (folder / "stuck-0.txt").mkdir()
if case == "terminal":
    os.set_blocking(2, False)
    try:
        while True:
            os.write(2, b"x")
    except BlockingIOError:
        os.set_blocking(2, True)
kept = phase_timer.PhaseTimer(Run(folder), time.time(), stuck_after=0.5)
kept.enter("data", step=3)
print("data", flush=True)
time.sleep(0.3)
if case == "close":
    kept.close()


def waits_for_data():
    time.sleep(600)


waits_for_data()
"""


@pytest.mark.parametrize("case", ["disk", "refused", "terminal", "close"])
def test_a_stuck_process_ends_in_time_whatever_hangs(tmp_path, case):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path), case],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "data\n"
        began = time.monotonic()
        assert process.wait(timeout=60) == 70
        assert time.monotonic() - began < 15, "0.5 s without progress, 1 s to say so"
    finally:
        process.kill()
    said, report = process.stderr.read(), tmp_path / "stuck-0.txt"
    if case != "terminal":
        assert "is stuck in phase data for " in said and "after step 3: all hosts end" in said
    if case == "refused":
        assert f"error: {report} was not written: [Errno 21] Is a directory" in said
    if case in ("terminal", "close"):
        text = report.read_text()
        assert ", phase data, after step 3\n" in text
        assert ("in waits_for_data" if case == "terminal" else "in close") in text
        assert "thread MainThread, innermost call first:" in text
