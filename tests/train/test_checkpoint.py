"""Checkpoints prove themselves: what was saved is what is loaded, or it is said what differs."""

import json
import os
import random
import shutil
import sys
import threading

import jax
import numpy as np
import pytest
from building import changed

from gpt3jax.checkpoint import manifest
from gpt3jax.checkpoint.array_hash import array_hashes, as_hex
from gpt3jax.checkpoint.checkpointer import Checkpointer, SaveError
from gpt3jax.checkpoint.manifest import CheckpointManifest, DamagedError, read_manifest
from gpt3jax.config import Mesh
from gpt3jax.errors import ConfigError
from gpt3jax.run_dir import Changes, Run
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.train.monitor import event_log
from gpt3jax.train.state import abstract_state
from gpt3jax.train.train import train

hooks = []
"""Called with each thing that Python is about to do; a hook itself cannot be taken off."""
sys.addaudithook(lambda *event: [hook(*event) for hook in hooks])

FLIPS = int(os.environ.get("GPT3JAX_FUZZ", 1000)) // 10
"""`make faults` tries a thousand."""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Made by the first test that needs it: a folder to copy runs from."""
    return tmp_path_factory.mktemp("small")


@pytest.fixture
def run(experiment, small, tmp_path, one_device):
    """A run with checkpoints of steps 2 and 4, and its experiment."""
    experiment = changed(
        experiment, train={"steps": 4, "save_every": 2},
        evaluate={"sample_tokens": 0},
    )  # fmt: skip
    if not (small / "run").exists():
        train(experiment, small / "run")
    shutil.copytree(small / "run", tmp_path / "run")
    return Run(tmp_path / "run"), experiment


def load(run, experiment, step=4):
    checkpoints = Checkpointer(run.checkpoints)
    checkpoints.manifest(step)
    mesh = make_mesh(Mesh(data=1), jax.devices()[:1])
    return checkpoints.restore(step, abstract_state(experiment, mesh))


def files_of(run, step=4):
    return sorted(path for path in (run.checkpoints / str(step)).rglob("*") if path.is_file())


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_what_is_loaded_is_what_was_saved(run):
    run, experiment = run
    found = load(run, experiment)
    manifest = read_manifest(run.checkpoints / "4")
    hashes = {name: as_hex(each) for name, each in array_hashes(found_parts(found)).items()}
    assert hashes == {name: leaf.hash for name, leaf in manifest.leaves.items()}
    assert len(set(hashes.values())) > len(hashes) / 2
    saved = [event for event in event_log.read(run.ledger_file) if event["event"] == "save"]
    assert [event["step"] for event in saved] == [2, 4]
    assert saved[-1]["state"] == manifest.state != saved[0]["state"]


def found_parts(state):
    return {"params": state.params, "optimizer": state.optimizer}


def test_every_flipped_bit_is_found(run):
    """Of any file by its bytes; of values also by their leaf alone, as in files of gigabytes."""
    run, experiment = run
    mesh = make_mesh(Mesh(data=1), jax.devices()[:1])
    abstract, checkpoints = abstract_state(experiment, mesh), Checkpointer(run.checkpoints)
    draw, files = random.Random(0), [path for path in files_of(run) if path.stat().st_size]
    sizes = [path.stat().st_size for path in files]
    by_leaf = 0
    for number, path in enumerate([*files, *draw.choices(files, sizes, k=FLIPS)]):
        bit = draw.randrange(8 * path.stat().st_size)
        flip(path, bit)
        with pytest.raises(DamagedError):
            checkpoints.manifest(4)
            raise AssertionError(f"bit {bit} of {path} was missed")
        if number >= len(files) and manifest.CHUNK.fullmatch(path.name):
            by_leaf += 1
            with pytest.raises(DamagedError, match="^leaf .* has other values"):
                checkpoints.restore(4, abstract)
                raise AssertionError(f"bit {bit} of {path} was missed by its leaf")
        flip(path, bit)
    assert by_leaf > FLIPS / 2
    load(run, experiment)


def test_a_damaged_value_names_its_leaf(run):
    """Also where no file is hashed, as no large file of values is."""
    run, experiment = run
    chunk = run.checkpoints / "4" / "params" / "layers.qkv.kernel" / "0.0.0.0.0"
    flip(chunk, 1234)
    with pytest.raises(DamagedError, match=r"file params/layers.qkv.kernel/0.* another content"):
        load(run, experiment)
    mesh = make_mesh(Mesh(data=1), jax.devices()[:1])
    with pytest.raises(DamagedError, match="leaf params/layers/qkv/kernel has other values"):
        Checkpointer(run.checkpoints).restore(4, abstract_state(experiment, mesh))


DAMAGES = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "missing": os.remove,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_truncated_emptied_or_missing_is_found(run, damage):
    run, experiment = run
    for path in files_of(run):
        whole = path.read_bytes()
        if not whole:
            continue
        DAMAGES[damage](path)
        with pytest.raises(DamagedError):
            load(run, experiment)
        path.write_bytes(whole)
    load(run, experiment)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("manifest.json", "emptied"),
        ("params/_METADATA", "missing"),
        ("optimizer/1.mu.token_embedding/0.0", "truncated"),
    ],
)
def test_a_run_falls_back_to_the_older_checkpoint_and_says_so(run, damage, name, capsys):
    run, experiment = run
    DAMAGES[damage](run.checkpoints / "4" / name)
    outcome = train(changed(experiment, train={"steps": 5}), run.path)
    assert outcome.steps_taken == 3, "from step 2 on"
    assert "checkpoint 4 is damaged and was passed over" in capsys.readouterr().out
    (event,) = (each for each in event_log.read(run.ledger_file) if each["event"] == "damaged")
    assert event["step"] == 4 and (run.checkpoints / "4.damaged").is_dir()
    assert Checkpointer(run.checkpoints).steps() == [2, 4, 5]
    whole = [r for r in event_log.read(run.ledger_file) if r["event"] == "save" and r["step"] == 4]
    assert whole[0]["state"] == whole[1]["state"], "the same bits again"


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(run):
    run, experiment = run
    for step in (2, 4):
        (run.checkpoints / str(step) / "manifest.json").unlink()
    with pytest.raises(DamagedError, match=r"\(4: manifest.json .*does not start over by itself"):
        train(changed(experiment, train={"steps": 5}), run.path)
    assert Checkpointer(run.checkpoints).steps() == [2, 4], "they are left as they are"


def test_stray_folders_are_no_checkpoints(run):
    run, experiment = run
    (run.checkpoints / "99").mkdir()
    (run.checkpoints / "5").mkdir()
    (run.checkpoints / "5" / "notes.txt").write_text("mine")
    (run.checkpoints / "7.saving").mkdir()
    assert Checkpointer(run.checkpoints).steps() == [2, 4]
    longer = changed(experiment, train={"steps": 6, "save_every": 1})
    assert train(longer, run.path).steps_taken == 2
    assert Checkpointer(run.checkpoints).steps() == [4, 5, 6]
    assert (run.checkpoints / "5.stray" / "notes.txt").read_text() == "mine"
    assert not (run.checkpoints / "7.saving").exists()


def test_a_checkpoint_of_another_run_or_step_is_not_taken(run, experiment, tmp_path, capsys):
    run, own = run
    other = changed(own, schedule={"peak_learning_rate": 0.5}, train={"steps": 6})
    train(other, tmp_path / "other")
    shutil.copytree(tmp_path / "other" / "checkpoints" / "6", run.checkpoints / "6")
    shutil.copytree(run.checkpoints / "4", run.checkpoints / "8")
    train(changed(own, train={"steps": 5}), run.path)
    out = capsys.readouterr().out
    assert "checkpoint 6 is damaged and was passed over: it is of another run" in out
    assert "checkpoint 8 is damaged and was passed over: its manifest is that of step 4" in out


def test_a_change_that_is_allowed_is_recorded_and_older_checkpoints_stay_good(run):
    run, experiment = run
    other = changed(experiment, schedule={"peak_learning_rate": 0.02}, train={"steps": 5})
    with pytest.raises(ConfigError, match="--allow-change schedule.peak_learning_rate"):
        train(other, run.path)
    allow = Changes(allow_change=("schedule",))
    assert train(other, run.path, changes=allow).steps_taken == 1
    (event,) = (each for each in event_log.read(run.ledger_file) if each["event"] == "change")
    assert event["what"] == ["schedule.peak_learning_rate was 0.01, now 0.02"]
    assert train(changed(other, train={"steps": 6}), run.path, changes=allow).steps_taken == 1
    wider = changed(experiment, model={"n_heads": 2, "d_head": 16}, train={"steps": 7})
    with pytest.raises(ConfigError, match="model.n_heads was 4, now 2"):
        train(wider, run.path, changes=Changes(allow_change=("model", "schedule")))


def test_the_hash_of_a_leaf_is_the_same_on_every_mesh():
    values = np.random.default_rng(0).standard_normal((8, 16, 24)).astype(np.float32)
    sharding = jax.sharding.NamedSharding
    spec = jax.sharding.PartitionSpec
    found = set()
    for sizes, axes in [((1,), ("a",)), ((8,), ("a",)), ((2, 4), ("b", "a")), ((4, 2), ("a", "b"))]:
        count = int(np.prod(sizes))
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]).reshape(sizes), axes)
        for parts in (spec("a"), spec(None, "a"), spec(None, None, axes)):
            spread = jax.device_put(values, sharding(mesh, parts))
            found.add(as_hex(array_hashes({"x": spread})["x"]))
    assert len(found) == 1
    for a, b in [((0, 3, 2), (5, 3, 2)), ((0, 0, 0), (5, 3, 2)), ((..., 0), (..., 1))]:
        swapped = values.copy()
        swapped[a], swapped[b] = values[b], values[a]
        assert as_hex(array_hashes({"x": swapped})["x"]) not in found, "places count"


@pytest.mark.long
def test_saves_never_leave_fewer_than_one_whole_checkpoint(run):
    """With keep=1, before every file that a save opens, renames or removes."""
    run, experiment = run
    whole = []

    def look(event, _):
        # In the thread that saves, which waits for us: nothing moves while we look.
        is_saving = threading.current_thread().name.startswith("save")
        watched = ("open", "os.rename", "os.remove", "shutil.rmtree")
        if is_saving and event in watched and not looking:
            looking.append(True)
            checkpoints = Checkpointer(run.checkpoints)
            whole.append(0)
            for step in checkpoints.steps():
                try:
                    checkpoints.manifest(step)
                    whole[-1] += 1
                except DamagedError:
                    continue
            looking.clear()

    looking = [True]
    hooks.append(look)
    looking.clear()
    train(changed(experiment, train={"steps": 7, "save_every": 1, "keep": 1}), run.path)
    hooks.clear()
    assert len(whole) > 50 and min(whole) >= 1


def test_a_full_disk_is_told_before_a_byte_is_written(run, monkeypatch):
    run, experiment = run
    free = shutil._ntuple_diskusage(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(SaveError, match=r"checkpoint 5 needs .* GB, but .* has 1e-06 GB free"):
        train(changed(experiment, train={"steps": 5}), run.path)
    assert Checkpointer(run.checkpoints).steps() == [2, 4]
    assert not list(run.checkpoints.glob("*.saving*"))


def test_a_save_that_fails_once_is_tried_again(run, monkeypatch, capsys):
    run, experiment = run
    seal_it, failed = CheckpointManifest.write, []

    def fails_once(self, folder):
        if not failed:
            failed.append(self.step)
            raise OSError(5, "Input/output error")
        seal_it(self, folder)

    monkeypatch.setattr(CheckpointManifest, "write", fails_once)
    train(changed(experiment, train={"steps": 9, "save_every": 2}), run.path)
    assert failed == [6]
    assert "checkpoint 6 could not be written: Input/output error" in capsys.readouterr().out
    steps = Checkpointer(run.checkpoints).steps()
    assert steps[-2:] == [8, 9] and not list(run.checkpoints.glob("*.saving*"))
    failures = [each for each in event_log.read(run.ledger_file) if each["event"] == "save failed"]
    assert len(failures) == 1


def test_other_code_than_the_checkpoints_is_said(run, monkeypatch, capsys):
    run, experiment = run
    now = event_log.code_version()
    monkeypatch.setattr(event_log, "code_version", lambda: now | {"jaxlib": "9.9.9"})
    train(changed(experiment, train={"steps": 5}), run.path)
    told = f'since the checkpoint, jaxlib was "{now["jaxlib"]}", now "9.9.9"'
    assert told in capsys.readouterr().out


def test_the_manifest_says_what_the_design_says(run):
    run, _ = run
    record = json.loads((run.checkpoints / "4" / "manifest.json").read_text())
    assert (record["step"], record["sequences"], record["format"]) == (4, 32, 1)
    leaf = record["leaves"]["params/layers/up/kernel"]
    assert leaf["shape"] == [2, 32, 128] and leaf["dtype"] == "float32"
    assert record["code"]["jax"] == jax.__version__
