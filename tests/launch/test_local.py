"""Several real processes on this machine: one training, one run, one end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from compiler_flags import FAST

from gpt3jax.run_dir import Run
from gpt3jax.train.monitor import event_log

ROOT = Path(__file__).parents[2]
LOCAL = ROOT / "launch" / "local.py"
ENVIRONMENT = {**os.environ, "XLA_FLAGS": FAST, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def file(experiment, tmp_path):
    """An experiment file: 8 windows a step, 12 steps, over all devices."""
    path = tmp_path / "experiment.py"
    path.write_text(
        "from gpt3jax.config import Experiment\n\n\ndef experiment():\n"
        f"    return Experiment.from_json({experiment.to_json()!r})\n"
    )
    return path


def launch(file, run, *overrides, processes=2, devices=2, program=LOCAL):
    """Start `launch/local.py` on the experiment."""
    command = [
        sys.executable, str(program), "--processes", str(processes), "--devices", str(devices),
        str(file), "--run", str(run), "--mesh.data", "-1", *overrides,
    ]  # fmt: skip
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def finish(process, seconds=120):
    """Its exit code and what it printed."""
    try:
        out, _ = process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out


def losses(run):
    return {r["step"]: (r.get("loss"), r.get("val_loss")) for r in Run(run).metrics()}


def wait_for_step(run, step, seconds=60):
    deadline = time.monotonic() + seconds
    while not any(record["step"] >= step for record in Run(run).metrics()):
        assert time.monotonic() < deadline, "training did not get there"
        time.sleep(0.05)


def children(process):
    """The training processes, in order."""
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    return sorted(int(pid) for pid in found.stdout.split())


def test_two_processes_train_like_one_and_write_one_run(file, tmp_path):
    code, alone = finish(launch(file, tmp_path / "one", processes=1, devices=4))
    assert code == 0, alone
    code, together = finish(launch(file, tmp_path / "two"))
    assert code == 0, together
    assert together.count("Next:") == 1, "only the first process prints"
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert list(two) == list(range(13))
    for step, values in one.items():
        for a, b in zip(values, two[step], strict=True):
            assert a == b or b == pytest.approx(a, rel=1e-6)
    events = event_log.read(Run(tmp_path / "two").ledger_file)
    assert [e["event"] for e in events].count("start") == 1
    assert events[0]["hosts"] == 2 and events[0]["mesh"]["data"] == 4


@pytest.mark.long
def test_a_killed_process_ends_the_job_and_a_restart_gives_the_same_bits(file, tmp_path):
    overrides = ("--train.save-every", "4")
    assert finish(launch(file, tmp_path / "whole", *overrides))[0] == 0
    job = launch(file, tmp_path / "killed", *overrides, "--train.steps", "100000")
    wait_for_step(tmp_path / "killed", 6)
    began = time.monotonic()
    os.kill(children(job)[1], signal.SIGKILL)
    code, out = finish(job)
    assert time.monotonic() - began < 30
    assert code == 137 and "process 1 was ended by SIGKILL" in out
    assert "heartbeats): 1" in " ".join(out.split()), "JAX names the dead process"
    assert finish(launch(file, tmp_path / "killed", *overrides))[0] == 0
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


@pytest.mark.long
def test_a_signal_to_one_process_stops_all_at_the_same_step_with_all_saved(file, tmp_path):
    job = launch(file, tmp_path / "run", "--train.steps", "100000")
    wait_for_step(tmp_path / "run", 3)
    os.kill(children(job)[1], signal.SIGTERM)
    code, out = finish(job)
    assert code == 143, out
    last = list(losses(tmp_path / "run"))[-1]
    assert f"stopped at step {last}" in out
    assert (Run(tmp_path / "run").checkpoints / str(last)).is_dir()


STUCK = """
import sys, time
import jax
from gpt3jax import cli
from gpt3jax.train.batches import BatchFeed

take = BatchFeed.take
calls = []

def stuck(self, count):
    calls.append(count)
    if jax.process_index() == 1 and len(calls) > 3:
        time.sleep(1000)
    return take(self, count)

BatchFeed.take = stuck
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.long
def test_a_stuck_process_is_named_and_its_stacks_are_saved(file, tmp_path):
    program = tmp_path / "stuck_local.py"
    (tmp_path / "stuck.py").write_text(STUCK)
    program.write_text(LOCAL.read_text().replace('"-m", "gpt3jax"', f'"{tmp_path / "stuck.py"}"'))
    code, out = finish(launch(file, tmp_path / "run", "--stuck-after", "5", program=program))
    assert code == 70
    assert "host 1" in out and "stuck in phase data" in out
    assert "after step 3" in out
    stacks = (tmp_path / "run" / "stuck-1.txt").read_text()
    assert "in stuck" in stacks and "phase data" in stacks


def test_hosts_that_differ_are_named_and_all_stop(file, tmp_path):
    program = tmp_path / "mixed_local.py"
    program.write_text(
        LOCAL.read_text().replace(
            "*arguments.overrides,", '*arguments.overrides, *(["--seed", "7"] if process else []),'
        )
    )
    code, out = finish(launch(file, tmp_path / "run", program=program))
    assert code == 2
    assert "host 1" in out and "experiment.seed 7" in out and out.count("error:") == 1
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_an_error_on_one_host_ends_all_and_names_it(file, prepared, tmp_path):
    program = tmp_path / "lost_local.py"
    program.write_text(
        LOCAL.read_text().replace(
            '"train", arguments.experiment,',
            '"train", arguments.experiment.replace("experiment.py", f"{process}.py"),',
        )
    )
    text = file.read_text()
    (tmp_path / "0.py").write_text(text)
    (tmp_path / "1.py").write_text(text.replace(str(prepared), str(tmp_path / "nothing")))
    code, out = finish(launch(tmp_path / "experiment.py", tmp_path / "run", program=program))
    assert code == 2
    assert "host 1" in out and "gpt3jax data prepare" in out and out.count("error:") == 1


@pytest.mark.parametrize(
    ("flags", "variables", "words"),
    [
        (["--processes", "2"], {}, "give all three"),
        (["--distributed", "on"], {}, "no cluster was detected"),
        ([], {"KUBERNETES_SERVICE_HOST": "127.0.0.1"}, "--distributed off trains as"),
    ],
)
def test_an_unreachable_cluster_is_an_error_of_one_line(file, tmp_path, flags, variables, words):
    command = [sys.executable, "-m", "gpt3jax", "train", str(file), "--run", str(tmp_path), *flags]
    done = subprocess.run(
        command, env={**ENVIRONMENT, **variables}, capture_output=True, text=True, timeout=100
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2 and len(errors) == 1 and words in errors[0]
