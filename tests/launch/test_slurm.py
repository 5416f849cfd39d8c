"""launch/slurm.sbatch on a real Slurm of two nodes: preempted, requeued, cancelled, mistaken."""

import dataclasses
import os
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from building import changed
from slurm_cluster import missing, running_cluster, until

from gpt3jax.checkpoint.checkpointer import Checkpointer
from gpt3jax.config import Mesh
from gpt3jax.data.prepare.prepare import prepare, verify
from gpt3jax.run_dir import Run
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.train.monitor import event_log
from gpt3jax.train.state import abstract_state

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).parents[2]
BATCH = ROOT / "launch/slurm.sbatch"
EXACT = ("step", "sequences", "tokens", "loss", "grad_norm", "learning_rate", "val_loss")
STEPS = 60

PACED = """
import os, time
from gpt3jax.config import *
from gpt3jax.train.batches import BatchFeed

def take(feed, count, taken=BatchFeed.take):
    time.sleep(float(os.environ["PACE"]))
    return taken(feed, count)

BatchFeed.take = take
"""
"""Makes an experiment file that leaves time to interrupt it on any machine."""


@pytest.fixture(scope="module")
def cluster():
    if absent := missing():
        pytest.skip(f"SLURM GOES UNTESTED, no {', '.join(absent)}: apt-get install slurm-wlm munge")
    with running_cluster() as running:
        yield running


@pytest.fixture
def experiment_file(experiment, tmp_path):
    """A tiny experiment, on two devices of each of two nodes."""
    experiment = dataclasses.replace(experiment, mesh=Mesh(data=2, fsdp=2))
    training = {"steps": STEPS, "save_every": 10 * STEPS}
    experiment = changed(experiment, train=training)
    file = tmp_path / "experiment.py"
    file.write_text(PACED + f"def experiment():\n    return {experiment!r}\n")
    return file


@pytest.fixture
def train(cluster, experiment_file, tmp_path):
    """Submit training with two fake devices per node; the number of the job."""

    def submit(run, *overrides, pace=0):
        return cluster.submit(
            f"--output={tmp_path}/{run}.out", BATCH, experiment_file, "--run", tmp_path / run,
            *overrides, GPT3JAX=f"{sys.executable} -m gpt3jax", PYTHONPATH=str(ROOT),
            XLA_FLAGS=os.environ["XLA_FLAGS"].replace("count=8", "count=2"), PACE=str(pace),
        )  # fmt: skip

    return submit


@pytest.fixture
def pretend(cluster, tmp_path):
    """Submit a script in place of gpt3jax; the number of the job, and its output."""

    def submit(text, *options):
        script, output = tmp_path / "script", tmp_path / "output"
        script.write_text(f"#!/bin/bash\n{text}\n")
        script.chmod(0o755)
        number = cluster.submit(
            f"--output={output}", *options, BATCH, "x.py", "--run", "a folder", GPT3JAX=str(script)
        )
        return number, output

    return submit


def records(path):
    """What must repeat bit for bit, one line for each step."""
    return [{k: record[k] for k in EXACT if k in record} for record in Run(path).metrics()]


def final_state(path):
    """Every leaf of the newest checkpoint, by value, on one device."""
    run = Run(path)
    checkpoints, mesh = Checkpointer(run.checkpoints), make_mesh(Mesh(), jax.devices()[:1])
    state = checkpoints.restore(checkpoints.steps()[-1], abstract_state(run.experiment(), mesh))
    checkpoints.close()
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


@pytest.mark.long
def test_a_run_that_is_preempted_and_requeued_equals_one_that_is_not(cluster, train, tmp_path):
    job = train("parts", pace=0.2)
    until(lambda: len(Run(tmp_path / "parts").metrics()) > 3, 300, "training")
    other = cluster.submit("--partition=high", "--output=/dev/null", "--wrap=true")
    assert cluster.wait(other)["JobState"] == "COMPLETED", "the other one got the nodes"
    saved = len(Run(tmp_path / "parts").metrics())
    until(lambda: len(Run(tmp_path / "parts").metrics()) > saved + 3, 300, "resumed training")
    cluster.run("scontrol", "requeue", job)
    job = cluster.wait(job)
    log = (tmp_path / "parts.out").read_text()
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "2"), log
    events = event_log.read(Run(tmp_path / "parts").ledger_file)
    events = [one for one in events if one["event"] in ("start", "resume", "stop")]
    assert [one["event"] for one in events] == ["start", "stop", *["resume", "stop"] * 2], log
    assert [one["signal"] for one in events[1::2]] == [15, 15, None]
    steps = [one["step"] for one in events]
    assert steps[1::2][:-1] == steps[2::2], "no step was lost"
    assert 0 < steps[1] < steps[3] < steps[5] == STEPS
    assert events[0]["hosts"] == 2

    assert cluster.wait(train("whole"))["JobState"] == "COMPLETED"
    whole, parts = records(tmp_path / "whole"), records(tmp_path / "parts")
    assert [record["step"] for record in whole] == list(range(STEPS + 1))
    assert whole == parts
    states = final_state(tmp_path / "whole"), final_state(tmp_path / "parts")
    for a, b in zip(*states, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_user_error_is_printed_once_per_node_and_not_requeued(cluster, train, tmp_path):
    job = cluster.wait(train("run", "--mesh.data", "3"))
    log = (tmp_path / "run.out").read_text()
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "2:0", "0"), log
    assert "error: " in log and "product of the axes" in log


@pytest.mark.parametrize("code", [1, 2, 137])
def test_a_failure_is_not_requeued(cluster, pretend, code):
    number, output = pretend(f"(( SLURM_PROCID )) && exit {code}; sleep 2; echo error: why")
    job, log = cluster.wait(number), output.read_text()
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", f"{code}:0", "0"), log
    assert "error: why\n" in log, "the other process had time to say it"


WAITS = """
cd {}
trap 'sleep $((2 - SLURM_PROCID)); echo saved >>saved; exit 143' TERM
touch up-$SLURM_PROCID
while [ $SECONDS -lt 300 ]; do sleep 0.1; done
"""


@pytest.mark.long
def test_a_job_out_of_time_saves_and_resumes(cluster, pretend, tmp_path):
    script = f"echo attempt; (( SLURM_RESTART_COUNT )) && exit; {WAITS.format(tmp_path)}"
    number, output = pretend(script, "--time=3")  # The signal comes between 30 s and 60 s.
    job = cluster.wait(number)
    log = output.read_text()
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), log
    assert (tmp_path / "saved").read_text() == "saved\nsaved\n", log
    assert log.count("attempt\n") == 4, "what was printed before is kept"


def test_a_cancelled_job_saves_and_is_not_requeued(cluster, pretend, tmp_path):
    number, output = pretend(WAITS.format(tmp_path))
    until(lambda: len([*tmp_path.glob("up-*")]) == 2, 30, "the job")
    cluster.run("scancel", number)
    job = cluster.wait(number)
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0"), output.read_text()
    assert (tmp_path / "saved").read_text() == "saved\nsaved\n"


def test_one_process_per_node_has_all_its_cpus_and_gpus(cluster, pretend):
    shown = "$SLURM_NODEID of $SLURM_NTASKS: $SLURM_CPUS_ON_NODE, $CUDA_VISIBLE_DEVICES"
    number, output = pretend(f'echo "{shown}, $JAX_LOCAL_DEVICE_IDS," "$@"', "--gpus-per-node=4")
    assert cluster.wait(number)["JobState"] == "COMPLETED"
    expected = "{} of 2: 2, 0,1,2,3, 0,1,2,3, train x.py --run a folder"
    assert sorted(output.read_text().splitlines()) == [expected.format(node) for node in (0, 1)]


@pytest.mark.long
def test_an_array_of_workers_shares_a_sweep(cluster, experiment_file, tmp_path):
    """Two jobs of one node each, on one storage; what stands for training is started by srun."""
    script, fake = tmp_path / "script", ROOT / "tests/sweep/fake_train.py"
    space = 'def space(trial):\n    return {"x": trial.suggest_float("x", 0, 2)}\n'
    experiment_file.write_text(experiment_file.read_text() + "\n\n" + space)
    script.write_text(
        "#!/bin/bash\n"
        f'[ "$1" = sweep ] && exec {sys.executable} -m gpt3jax "$@"\n'
        f'shift; echo "$SLURM_JOB_ID $SLURM_STEP_ID"; exec {sys.executable} {fake} "$@" --slow 2\n'
    )
    script.chmod(0o755)
    number = cluster.submit(
        "--nodes=1", "--array=1-2", f"--output={tmp_path}/%a.out", ROOT / "launch/sweep.sbatch",
        experiment_file, "--trials", "4", "--pruner", "none", "--storage", tmp_path / "s.journal",
        GPT3JAX=str(script), PYTHONPATH=str(ROOT), PACE="0",
    )  # fmt: skip
    until(lambda: not cluster.run("squeue", "--noheader", "--jobs", number), 200, "the sweep")
    said = [(tmp_path / f"{task}.out").read_text() for task in (1, 2)]
    assert all("4 trials: 4 complete" in text for text in said), said
    logs = [path.read_text().split()[:2] for path in sorted((tmp_path / "s/logs").iterdir())]
    assert len(logs) == 4 and len({job for job, _ in logs}) == 2, "both jobs took part"
    assert all(step.isdecimal() for _, step in logs), "srun started them"


def test_merged_shards_equal_the_output_of_one_process(cluster, prepared, corpus):
    """Four shards, two at a time, and the job that waits for them."""
    folder = prepared.parent / "array"
    folder.mkdir()
    words = ("--corpus", corpus, "--tokenizer", prepared, "--context", "48")
    env = {"GPT3JAX": f"{sys.executable} -m gpt3jax", "PYTHONPATH": str(ROOT)}
    array = cluster.submit(
        "--nodes=1", "--array=0-3%2", f"--output={folder}/%a.out", ROOT / "launch/prepare.sbatch",
        *words, "--out", folder / "many", **env,
    )  # fmt: skip
    command = f"{sys.executable} -m gpt3jax data merge {folder / 'many'}"
    merge = cluster.submit(
        "--nodes=1", f"--dependency=afterok:{array}", f"--output={folder}/merge.out",
        f"--wrap={command}", **env,
    )  # fmt: skip
    job = cluster.wait(merge)
    said = "".join(path.read_text() for path in sorted(folder.glob("*.out")))
    assert job["JobState"] == "COMPLETED", said
    assert said.count("Then run: gpt3jax data merge") == 4
    one = prepare(str(corpus), str(folder / "one"), context=48, vocabulary=300,
                  tokenizer=str(prepared), workers=1)  # fmt: skip
    assert verify(folder / "many") == one
    assert all(
        (folder / "many" / path.name).read_bytes() == path.read_bytes()
        for path in (folder / "one").iterdir()
    )
