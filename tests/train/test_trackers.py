"""Trackers get every record; one that hangs or fails neither stops nor slows training."""

import json
import os
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from building import changed

from gpt3jax.cli import main
from gpt3jax.errors import ConfigError
from gpt3jax.run_dir import Run
from gpt3jax.train import trackers
from gpt3jax.train.train import train

ROOT = Path(__file__).parents[2]


class Memory:
    """Keeps what it gets."""

    made = ()

    def __init__(self, run, resumed_at):
        self.resumed_at, self.records, self.texts, self.is_closed = resumed_at, [], [], False
        Memory.made = (*Memory.made, self)

    def log(self, record, step):
        self.records.append({"step": step, **record})

    def text(self, name, text, step):
        self.texts.append((name, text, step))

    def close(self):
        self.is_closed = True


class Raises(Memory):
    def log(self, record, step):
        raise ValueError("no route to the server")


class Hangs(Memory):
    def log(self, record, step):
        threading.Event().wait()


class FailsToBegin(Memory):
    def __init__(self, run, resumed_at):
        raise SystemExit(1)


@pytest.fixture
def use(monkeypatch):
    """Make trackers of the test's own known, by name."""
    monkeypatch.setattr(Memory, "made", ())
    made = {"memory": Memory, "raises": Raises, "hangs": Hangs, "fails": FailsToBegin}
    for name, make in made.items():
        monkeypatch.setitem(trackers.TRACKERS, name, make)
    monkeypatch.setattr(trackers, "CLOSE_S", 0.5)


def records_of(path):
    """What is in metrics.jsonl, as trackers should get it."""
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_tracker_gets_every_record_and_text_in_order(short, use, tmp_path, one_device):
    sampled = changed(short, train={"steps": 4}, evaluate={"every": 4, "sample_tokens": 2})
    train(sampled, tmp_path / "run", trackers=["memory"])
    train(changed(sampled, train={"steps": 8}), tmp_path / "run", trackers=["memory"])
    first, second = Memory.made
    assert first.records + second.records == records_of(tmp_path / "run")
    assert (first.resumed_at, second.resumed_at) == (0, 4)
    texts = [(name, step) for each in Memory.made for name, _, step in each.texts]
    assert texts == [("sample", 0), ("sample", 4), ("sample", 8)]
    assert first.texts[1][1] == (tmp_path / "run/samples/4.txt").read_text()
    assert first.is_closed and second.is_closed


@pytest.mark.parametrize(
    ("name", "warning"),
    [
        ("raises", "has failed, and gets nothing more: ValueError: no route to the server"),
        ("fails", "has failed, and gets nothing more: SystemExit: 1"),
        ("hangs", "has not finished in 0 s and is left behind"),
    ],
)
def test_a_bad_tracker_is_a_warning_and_the_others_go_on(
    short, use, tmp_path, one_device, name, warning
):
    with pytest.warns(UserWarning, match=f"tracker {name} {warning}"):
        train(short, tmp_path / "run", trackers=[name, "memory"])
    assert Memory.made[-1].records == records_of(tmp_path / "run")
    assert Run(tmp_path / "run").metrics()[-1]["step"] == 8


def test_what_waits_for_a_slow_tracker_stays_in_order():
    begin, memory = threading.Event(), Memory(None, 0)

    def make():
        begin.wait()
        return memory

    slow = trackers.Background("slow", make)
    for step in range(20):
        slow.send("log", {"loss": 1.0}, step)
    begin.set()
    slow.close()
    assert [record["step"] for record in memory.records] == list(range(20)) and memory.is_closed


def test_a_full_queue_drops_records_and_says_so_once(use, monkeypatch):
    monkeypatch.setattr(trackers, "MOST_QUEUED", 3)
    with pytest.warns(UserWarning) as caught:
        slow = trackers.Background("slow", lambda: Hangs(None, 0))
        for step in range(50):
            slow.send("log", {"loss": 1.0}, step)
            time.sleep(0.001)
        slow.close()
    said = [str(each.message) for each in caught]
    assert sum("3 records behind: further ones are not sent" in each for each in said) == 1


def test_an_unknown_or_absent_tracker_is_refused_before_anything(tmp_path, monkeypatch, capsys):
    with pytest.raises(ConfigError, match="--tracker"):
        trackers.check_trackers(["tensorbord"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--tracker wandb needs a package .*gpt3jax\[trackers\]"):
        trackers.check_trackers(["tensorboard", "wandb"])
    words = ["train", "experiments/tiny.py", "--run", str(tmp_path / "run"), "--tracker", "none"]
    assert main(words) == 2 and "--tracker" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.fixture
def tracked(short, tmp_path, one_device, monkeypatch):
    """A run of two sessions with samples, sent to a real tracker; its records."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))

    def go(name):
        sampled = changed(short, train={"steps": 4}, evaluate={"every": 4, "sample_tokens": 2})
        with_more = changed(sampled, train={"steps": 8})
        for experiment in (sampled, with_more):
            train(experiment, tmp_path / "run", trackers=[name])
        return {record["step"]: record["loss"] for record in records_of(tmp_path / "run")
                if "loss" in record}  # fmt: skip

    return go


def logged_records(file):
    """The records of a .wandb file: a log in LevelDB's format after a header of seven bytes."""
    data, at, parts = file.read_bytes(), 7, b""
    while at < len(data):
        if 32768 - at % 32768 < 7:  # The end of a block is padding.
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # Whole, or last.
            yield parts
            parts = b""


@pytest.mark.trackers
def test_wandb_has_the_losses_the_config_and_the_samples(tracked, tmp_path):
    from wandb.proto import wandb_internal_pb2

    losses, found, configs, samples, ids = tracked("wandb"), {}, [], [], set()
    files = sorted((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    for file in files:
        for data in logged_records(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            items = {item.key or ".".join(item.nested_key): json.loads(item.value_json)
                     for item in record.history.item}  # fmt: skip
            if "loss" in items:
                found[int(items["_step"])] = items["loss"]
            samples += [items["sample"]] if "sample" in items else []
            if record.run.run_id:
                ids.add(record.run.run_id)
                configs.append({item.key: item.value_json for item in record.run.config.update})
    assert found == losses and len(losses) == 8
    assert ids == {trackers.tracker_id(Run(tmp_path / "run"))}
    assert json.loads(configs[0]["model"])["n_layers"] == 2
    assert (tmp_path / "run/samples/8.txt").read_text() in samples


@pytest.mark.trackers
def test_mlflow_continues_one_run(tracked, tmp_path):
    losses = tracked("mlflow")
    import mlflow

    client = mlflow.MlflowClient()
    project = client.get_experiment_by_name("gpt3jax").experiment_id
    (run,) = client.search_runs([project])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert {metric.step: metric.value for metric in history} == losses
    assert run.data.params["model.n_layers"] == "2" and run.info.status == "FINISHED"
    samples = [each.path for each in client.list_artifacts(run.info.run_id, "sample")]
    assert samples == ["sample/0.txt", "sample/4.txt", "sample/8.txt"]


@pytest.mark.trackers
def test_trackio_has_the_losses_and_the_samples(tracked, tmp_path):
    losses = tracked("trackio")
    import trackio

    (run,) = trackio.Api().runs("gpt3jax")
    assert run.name == f"run-{trackers.tracker_id(Run(tmp_path / 'run'))}"
    rows = trackio.SQLiteStorage.get_logs("gpt3jax", run.name)
    assert {row["step"]: row["loss"] for row in rows if "loss" in row} == losses
    texts = [row["sample"]["_value"] for row in rows if "sample" in row]
    assert len(texts) == 3 and (tmp_path / "run/samples/8.txt").read_text() in texts[2]
    assert run.config["model.n_layers"] == 2


def test_tensorboards_writer_does_not_import_pytorch(tmp_path):
    """Which takes seconds where it is installed; here it is a file that says so."""
    (tmp_path / "torch.py").write_text("print('imported')")
    code = "from gpt3jax.train.trackers import _tensorboardx; _tensorboardx().SummaryWriter"
    then = "print('then'); import torch"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    found = subprocess.run(
        [sys.executable, "-c", f"{code}; {then}"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert found.stdout.split() == ["then", "imported"], found.stderr
