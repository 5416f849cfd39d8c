"""A run: what its folder holds, how it stops, resumes, and what it refuses."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from building import changed

from gpt3jax.checkpoint.checkpointer import Checkpointer
from gpt3jax.config import Data, Mesh, Source
from gpt3jax.data import loader
from gpt3jax.data.manifest import load_manifest
from gpt3jax.data.prepare.prepare import prepare
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.errors import ConfigError
from gpt3jax.run_dir import Changes, Run
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.train.batches import BatchFeed
from gpt3jax.train.loop import NotFiniteError
from gpt3jax.train.monitor import event_log
from gpt3jax.train.resume import furthest
from gpt3jax.train.schedules import Microbatches, batch_range
from gpt3jax.train.state import abstract_state
from gpt3jax.train.train import train

EXACT = ("step", "sequences", "tokens", "loss", "grad_norm", "learning_rate", "batch_tokens")


def final_state(experiment, path):
    """Every leaf of the newest checkpoint, by value, on one device."""
    checkpoints = Checkpointer(Run(path).checkpoints)
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    state = checkpoints.restore(checkpoints.steps()[-1], abstract_state(experiment, mesh))
    checkpoints.close()
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def exact_records(path):
    """What must repeat bit for bit: not the times."""
    return [
        {name: record[name] for name in (*EXACT, "val_loss") if name in record}
        for record in Run(path).metrics()
    ]


@pytest.fixture
def ramped(experiment):
    """Batches grow from 2 windows to 8, by single windows, in microbatches of 2."""
    return changed(experiment, train={"microbatch": 2, "ramp_from_tokens": 96, "ramp_tokens": 1200})


@pytest.mark.usefixtures("one_device")
def test_a_stopped_and_resumed_run_equals_one_that_was_not_bit_for_bit(ramped, tmp_path):
    train(ramped, tmp_path / "whole")
    for steps in (5, 6, 12):
        outcome = train(changed(ramped, train={"steps": steps}), tmp_path / "parts")
    assert outcome.position.step == 12
    for a, b in zip(
        final_state(ramped, tmp_path / "whole"), final_state(ramped, tmp_path / "parts"),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_array_equal(a, b)
    whole, parts = exact_records(tmp_path / "whole"), exact_records(tmp_path / "parts")
    assert [r["step"] for r in parts] == list(range(13)), "each step is logged once"
    for a, b in zip(whole, parts, strict=True):
        shared = a.keys() & b.keys()
        assert {k: a[k] for k in shared} == {k: b[k] for k in shared}


@pytest.mark.usefixtures("one_device")
def test_a_finished_run_is_left_alone(experiment, tmp_path):
    first = train(changed(experiment, train={"steps": 2}), tmp_path)
    before = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "checkpoints").rglob("*"))
    again = train(changed(experiment, train={"steps": 2}), tmp_path)
    assert (first.steps_taken, again.steps_taken) == (2, 0)
    assert again.position == first.position
    after = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "checkpoints").rglob("*"))
    assert before == after


@pytest.mark.usefixtures("one_device")
def test_the_run_folder_is_complete_in_itself(experiment, tmp_path):
    experiment = changed(
        experiment, train={"save_every": 4, "keep": 2},
        evaluate={"every": 6, "sample_tokens": 2},
    )  # fmt: skip
    train(experiment, tmp_path)
    run = Run(tmp_path)
    assert run.experiment() == experiment
    assert Tokenizer.load(str(run.tokenizer_file)).vocabulary == 300
    assert {int(p.name) for p in run.checkpoints.iterdir() if p.name.isdigit()} == {8, 12}
    assert {p.name for p in run.samples.iterdir()} == {"0.txt", "6.txt", "12.txt"}
    assert any(run.tensorboard.iterdir())
    events = [event["event"] for event in event_log.read(run.ledger_file)]
    assert events[0] == "start" and events[-2:] == ["stop", "clock"]
    assert events.count("save") == 3
    records = {record["step"]: record for record in run.metrics()}
    assert {step for step, r in records.items() if "val_loss" in r} == {0, 6, 12}
    last = records[12]
    assert last["tokens"] == 12 * 8 * 48 and last["sequences"] == 96
    for name in ("loss", "grad_norm", "learning_rate", "tokens_per_s", "step_s", "data_wait_s",
                 "model_flops_per_s", "val_bits_per_byte", "seconds"):  # fmt: skip
        assert np.isfinite(last[name]), name
    assert last["val_loss"] < records[0]["val_loss"] - 0.5, "the model learned"


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops_and_the_same_call_goes_on(experiment, tmp_path, number):
    experiment = changed(experiment, train={"steps": 100_000})

    def send_when_training():
        while not Run(tmp_path).metrics()[2:]:
            time.sleep(0.05)
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send_when_training)
    sender.start()
    outcome = train(experiment, tmp_path)
    sender.join()
    assert outcome.signal == number
    assert furthest(Checkpointer(Run(tmp_path).checkpoints)) == outcome.position
    more = train(changed(experiment, train={"steps": outcome.position.step + 1}), tmp_path)
    assert more.steps_taken == 1


class CaughtAtQuestion(list):
    """A list of caught signals that is empty until it has been asked so many times."""

    def __init__(self, question):
        super().__init__([signal.SIGTERM])
        self.left = question

    def __bool__(self):
        self.left -= 1
        return self.left < 0


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("question", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.in_ci("2", "5")
def test_a_signal_between_any_two_lines_of_the_loop_loses_no_step(
    experiment, tmp_path, monkeypatch, question
):
    caught = contextlib.nullcontext(CaughtAtQuestion(question))
    monkeypatch.setattr("gpt3jax.train.train.caught_signals", lambda: caught)
    outcome = train(experiment, tmp_path)
    assert outcome.position.step < 12 and outcome.signal == signal.SIGTERM
    assert furthest(Checkpointer(Run(tmp_path).checkpoints)) == outcome.position
    logged = [record["step"] for record in Run(tmp_path).metrics()]
    assert (logged or [0])[-1] == outcome.position.step


@pytest.mark.usefixtures("one_device")
def test_another_experiment_is_refused_and_the_difference_named(experiment, tmp_path):
    train(changed(experiment, train={"steps": 1}), tmp_path)
    for other, name in [
        (dataclasses.replace(experiment, seed=5), "seed was 0, now 5"),
        (changed(experiment, model={"n_heads": 2, "d_head": 16}), "model.n_heads was 4, now 2"),
        (changed(experiment, train={"batch_tokens": 96}), "train.batch_tokens"),
        (changed(experiment, schedule={"peak_learning_rate": 1.0}), "schedule.peak_learning_rate"),
    ]:
        with pytest.raises(ConfigError, match=name):
            train(other, tmp_path)
    # What decides only how it is computed may change.
    allowed = changed(experiment, train={"steps": 2, "log_every": 7}, model={"remat": "full"})
    assert train(allowed, tmp_path).steps_taken == 1


@pytest.mark.usefixtures("one_device")
def test_a_source_that_is_read_more_than_four_times_is_named(short, prepared, tmp_path, capsys):
    (tmp_path / "few.txt").write_text("the cat sat on the mat.\n" * 35)
    prepare(
        str(tmp_path / "few.txt"), str(tmp_path / "few"), context=48, tokenizer=str(prepared),
        validation_fraction=0.1, workers=1,
    )  # fmt: skip
    count = load_manifest(tmp_path / "few").train_windows
    sources = (Source("words", str(prepared), 0.5), Source("few", str(tmp_path / "few"), 0.5))
    experiment = dataclasses.replace(short, data=Data(sources))
    train(experiment, tmp_path / "run")
    said = capsys.readouterr().out
    # Half of eight batches of eight windows.
    assert f"few will be read {32 / count:.1f} times: beyond 4 epochs" in said
    assert "words will be read" not in said
    start = event_log.read(Run(tmp_path / "run").ledger_file)[0]
    assert start["epochs"]["few"] == pytest.approx(32 / count) and 32 / count > 4


@pytest.mark.usefixtures("one_device")
def test_a_second_process_on_the_same_run_is_refused(experiment, tmp_path):
    holder = subprocess.Popen(
        [
            sys.executable, "-c",
            "import fcntl, os, sys, time\n"
            f"lock = open({str(tmp_path / 'lock')!r}, 'a+')\n"
            "fcntl.flock(lock, fcntl.LOCK_EX); lock.write(str(os.getpid())); lock.flush()\n"
            "print('held', flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout.readline() == "held\n"
    try:
        with pytest.raises(ConfigError, match=f"process {holder.pid}"):
            train(experiment, tmp_path)
    finally:
        holder.kill()
        holder.wait()
    assert train(changed(experiment, train={"steps": 1}), tmp_path).steps_taken == 1


@pytest.mark.usefixtures("one_device")
def test_a_diverged_run_stops_in_words_and_keeps_its_last_good_checkpoint(experiment, tmp_path):
    train(changed(experiment, train={"steps": 2}), tmp_path)
    poisoned = changed(experiment, train={"steps": 9}, schedule={"peak_learning_rate": 1e17})
    with pytest.raises(NotFiniteError, match="training diverged"):
        train(poisoned, tmp_path, changes=Changes(allow_change=("schedule",)))
    assert all(np.isfinite(leaf).all() for leaf in final_state(experiment, tmp_path))


@pytest.mark.long
def test_a_checkpoint_restores_bit_for_bit_on_another_mesh(experiment, tmp_path):
    mesh_8 = dataclasses.replace(experiment, mesh=Mesh(data=2, fsdp=2, tensor=2))
    train(changed(mesh_8, train={"steps": 2}), tmp_path)
    checkpoints = Checkpointer(Run(tmp_path).checkpoints)
    leaves = {}
    for sizes in ((2, 2, 2), (1, 1, 1), (1, 4, 1)):
        mesh = make_mesh(Mesh(*sizes), jax.devices()[: int(np.prod(sizes))])
        state = checkpoints.restore(2, abstract_state(experiment, mesh))
        leaves[sizes] = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    checkpoints.close()
    for found in leaves.values():
        for a, b in zip(leaves[2, 2, 2], found, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_feed_gives_the_windows_that_the_position_names(ramped):
    mesh = make_mesh(Mesh(), jax.devices()[:8])
    eight = changed(ramped, train={"microbatch": 8, "ramp_tokens": 0})
    order = loader.windows(eight.data, eight.seed, 48)
    feed = BatchFeed(eight, mesh, Microbatches([(8, 9)], 8, sequences=24))
    windows, waited = feed.take(1)
    feed.close()
    expected = np.stack([order[i] for i in batch_range(3, eight)])
    np.testing.assert_array_equal(np.asarray(windows[0]), expected)
    assert waited >= 0


def test_missing_data_and_meshes_that_do_not_fit_are_refused_in_words(experiment, tmp_path):
    experiment = dataclasses.replace(experiment, mesh=Mesh())
    missing = dataclasses.replace(experiment, data=Data((Source("a", str(tmp_path / "no")),)))
    with pytest.raises(ConfigError, match="gpt3jax data prepare"):
        train(missing, tmp_path / "run")
    for mesh, words in [
        (Mesh(data=3), "the product of the axes"),
        (Mesh(data=1, tensor=8), "n-heads is 4"),
        (Mesh(data=-1, tensor=3), "Use divisors of 8"),
    ]:
        with pytest.raises(ConfigError, match=words):
            train(dataclasses.replace(experiment, mesh=mesh), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_event_behind_a_torn_line_is_not_lost(tmp_path):
    event_log.record(tmp_path / "ledger.jsonl", "start", step=0)
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write('{"event": "sa')
    event_log.record(tmp_path / "ledger.jsonl", "resume", step=4)
    assert [each["event"] for each in event_log.read(tmp_path / "ledger.jsonl")] == [
        "start",
        "resume",
    ]
