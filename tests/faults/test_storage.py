"""Storage that fails: a clear line within seconds, and nothing lost."""

import dataclasses
import os
import resource
import shutil
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from building import changed
from kills import ENVIRONMENT, ROOT, make_data, session, whole

from gpt3jax.checkpoint.checkpointer import Checkpointer, SaveError
from gpt3jax.config import Data
from gpt3jax.data import loader
from gpt3jax.data.manifest import load_manifest
from gpt3jax.errors import ConfigError
from gpt3jax.run_dir import Run, write_atomic
from gpt3jax.train import metrics
from gpt3jax.train.monitor import phase_timer
from gpt3jax.train.train import train

pytestmark = pytest.mark.usefixtures("one_device")

IS_ROOT = os.geteuid() == 0


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


def launch(file, run, *words, limits=()):
    """A training process under resource limits: exit code, what it printed, its last line."""

    def limit():
        for kind, value in limits:
            resource.setrlimit(kind, (value, value))

    done = subprocess.run(
        [sys.executable, "-m", "gpt3jax", "train", str(file), "--run", str(run), *words],
        env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stdout, (done.stderr.strip().splitlines() or [""])[-1]


def at_step(monkeypatch, step, act):
    """Do something when the run is about to send the step after this one."""
    entered, done = phase_timer.PhaseTimer.enter, []

    def enter(self, phase, now=None):
        if now == step and not done:
            done.append(act())
        entered(self, phase, now)

    monkeypatch.setattr(phase_timer.PhaseTimer, "enter", enter)


@pytest.mark.long
def test_a_write_that_fails_half_way_stops_the_run_in_words(file, tmp_path):
    """Files may not grow past 30 kB: metrics fit, the embedding does not."""
    run = tmp_path / "run"
    limits = [(resource.RLIMIT_FSIZE, 30_000)]
    code, out, last = launch(file, run, limits=limits)
    assert code == 1
    assert last.startswith("error: checkpoint ") and "could not be written: File too large" in last
    assert len(last) <= 300 and out.count("Trying again") == 2
    assert not list((run / "checkpoints").iterdir()), "nothing half-written is left"
    assert launch(file, run, "--train.steps", "12")[0] == 0
    assert whole(run) == [6, 12]


def test_a_file_that_several_write_at_once_is_that_of_one_of_them(tmp_path):
    texts = [f"{n}" * 20_000 for n in range(4)]
    with ThreadPoolExecutor(len(texts)) as pool:
        list(pool.map(partial(write_atomic, tmp_path / "file"), texts * 50))
    assert (tmp_path / "file").read_text() in texts
    with pytest.raises(IsADirectoryError):
        (tmp_path / "folder").mkdir()
        write_atomic(tmp_path / "folder", "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.skipif(not IS_ROOT, reason="mounting a small file system takes root")
@pytest.mark.parametrize("options", ["size=1m", "size=1m,ro"])
@pytest.mark.in_ci("size=1m")
def test_a_full_or_read_only_disk(file, tmp_path, options):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(disk)], check=True)
    began = time.monotonic()
    try:
        if "ro" in options:
            code, _, last = launch(file, disk / "run")
            assert code == 2 and "cannot be written" in last
            assert time.monotonic() - began < 5, "before jax is imported"
            return
        code, _, last = launch(file, disk / "run", "--train.steps", "12", "--train.keep", "1")
        assert code == 1 and "needs" in last and "GB free" in last
        assert whole(disk / "run") == [6], "the one that fitted is whole"
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        assert launch(file, disk / "run", "--train.steps", "12")[0] == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_full_for_metrics_only_costs_the_metrics(short, tmp_path, monkeypatch):
    opened = metrics.MetricsLog.__init__

    def open_on_full_disk(self, *arguments):
        opened(self, *arguments)
        self._file = open("/dev/full", "a", buffering=1)  # noqa: SIM115

    monkeypatch.setattr(metrics.MetricsLog, "__init__", open_on_full_disk)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert train(short, tmp_path).position.step == 8
    assert any("No space left on device" in str(each.message) for each in told)
    assert Checkpointer(tmp_path / "checkpoints").steps() == [2, 4, 6, 8]


def test_a_folder_that_vanishes_ends_the_run_in_words(short, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    at_step(monkeypatch, 3, lambda: os.rename(tmp_path / "run", tmp_path / "gone"))
    with pytest.raises(SaveError, match=r"could not be written: (No such file|.* another folder)"):
        train(short, tmp_path / "run")
    left = [path.name for path in (tmp_path / "run").rglob("*")]
    assert "manifest.json" not in left and "experiment.json" not in left, "no run is made again"


@pytest.mark.long
def test_no_more_file_descriptors_is_said_and_nothing_is_lost(file, tmp_path):
    run = tmp_path / "run"
    process = session(file, run, "descriptors:9")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and whole(run) == [6]
    assert "could not be written: Too many open files" in out.splitlines()[-1], out
    assert "Traceback" not in out
    assert launch(file, run, "--train.steps", "12")[0] == 0


@pytest.fixture
def own_data(short, prepared, tmp_path):
    """The experiment on a copy of the data that may be spoilt."""
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    source = dataclasses.replace(short.data.sources[0], path=str(folder))
    return folder, dataclasses.replace(short, data=Data(sources=(source,)))


def spoil_flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


SPOILT = {
    "flipped": spoil_flip,
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 8),
    "missing": os.remove,
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_damaged_shard_is_named_before_step_0_and_at_a_resume(own_data, tmp_path, how):
    folder, experiment = own_data
    shard = folder / load_manifest(folder).train.shards[0].name
    kept = shard.read_bytes()
    SPOILT[how](shard)
    with pytest.raises(ConfigError, match=shard.name):
        train(experiment, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
    shard.write_bytes(kept)
    train(changed(experiment, train={"steps": 2}), tmp_path / "run")
    SPOILT[how](shard)
    with pytest.raises(ConfigError, match=shard.name):
        train(experiment, tmp_path / "run")


def test_another_tokenizer_of_the_same_name_is_refused(own_data, tmp_path):
    folder, experiment = own_data
    train(changed(experiment, train={"steps": 2}), tmp_path / "run")
    spoil_flip(folder / "tokenizer.model")
    with pytest.raises(ConfigError, match=r"tokenizer.model is damaged"):
        train(experiment, tmp_path / "run")


def test_a_shard_that_changes_while_it_is_read_gives_no_other_window(own_data):
    """Flipped where it lies, behind the manifest's back: an error, or the very same windows."""
    folder, experiment = own_data
    shard = folder / load_manifest(folder).train.shards[0].name
    kept = shard.read_bytes()
    rows = range(load_manifest(folder).train.windows)

    def read():
        order = loader.windows(experiment.data, 0, 48)
        return [order[row].tolist() for row in rows]

    expected, found_out = read(), 0
    for place in range(100, len(kept), len(kept) // 40):
        shard.write_bytes(kept[:place] + bytes([kept[place] ^ 16]) + kept[place + 1 :])
        try:
            assert read() == expected, f"byte {place}"
        except AssertionError:
            raise
        except Exception:
            found_out += 1
    assert found_out > 20


def test_a_clock_that_is_set_back_changes_nothing(short, tmp_path, monkeypatch):
    train(changed(short, train={"steps": 4}), tmp_path)
    now = time.time
    monkeypatch.setattr("time.time", lambda: now() - 365 * 86_400)
    outcome = train(short, tmp_path)
    assert outcome.steps_taken == 4, "from the newest by step, not by time"
    assert Run(tmp_path).metrics()[-1]["step"] == 8
