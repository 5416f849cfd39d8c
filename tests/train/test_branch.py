"""A branch continues a run with another schedule: the bits of a run that had it from the start."""

import dataclasses

import pytest
from building import changed

from gpt3jax.checkpoint.checkpointer import Checkpointer
from gpt3jax.checkpoint.manifest import read_manifest
from gpt3jax.cli import main
from gpt3jax.config import AdamW, Experiment, Muon
from gpt3jax.errors import ConfigError
from gpt3jax.run_dir import Changes, Run
from gpt3jax.train.monitor import event_log
from gpt3jax.train.train import train

BATCH = 8 * 48
CONSTANT = {"warmup_tokens": 2 * BATCH, "decay_tokens": 100 * BATCH, "decay_fraction": 0.0}
COOLDOWN = {
    "warmup_tokens": 2 * BATCH, "decay_tokens": 8 * BATCH, "decay_fraction": 0.5,
    "decay": "1-sqrt", "final_fraction": 0.0,
}  # fmt: skip


@pytest.fixture
def trunk(short):
    return dataclasses.replace(changed(short, schedule=CONSTANT), optimizer=Muon())


def branch(trunk, run, **fields):
    """Of the trunk's run, from step 4 to 8."""
    cooled = changed(trunk, schedule=COOLDOWN)
    return dataclasses.replace(cooled, init_from=f"{run}@4", inherit="state", **fields)


def steps(path):
    names = ("step", "sequences", "loss", "grad_norm", "learning_rate")
    return [tuple(record[name] for name in names) for record in Run(path).metrics()
            if "loss" in record]  # fmt: skip


def final_state(path):
    return read_manifest(Run(path).checkpoints / "8").state


@pytest.fixture
def trained(trunk, tmp_path, one_device):
    train(trunk, tmp_path / "trunk")
    return tmp_path / "trunk"


def test_a_cooldown_has_the_bits_of_a_run_with_its_schedule(trunk, trained, tmp_path, capsys):
    train(changed(trunk, schedule=COOLDOWN), tmp_path / "whole")
    train(branch(trunk, trained), tmp_path / "branch")
    assert steps(tmp_path / "branch") == steps(tmp_path / "whole")[4:]
    assert final_state(tmp_path / "branch") == final_state(tmp_path / "whole")
    assert final_state(tmp_path / "branch") != final_state(trained)
    assert [rate for *_, rate in steps(tmp_path / "branch")][-1] == 0
    said = capsys.readouterr().out
    assert "from step 4: its parameters, its moments and its position in the data" in said
    events = [each["event"] for each in event_log.read(Run(tmp_path / "branch").ledger_file)]
    assert events[0] == "start" and "resume" not in events


def test_a_branch_that_is_interrupted_resumes_and_is_replayed(trunk, trained, tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(branch(trunk, trained), whole)
    train(changed(branch(trunk, trained), train={"steps": 5, "save_every": 100}), parts)
    train(branch(trunk, trained), parts)
    assert steps(parts) == steps(whole) and final_state(parts) == final_state(whole)
    for span in ("4:6", "6:8"):
        assert main(["verify", str(whole), "--replay", span]) == 0, capsys.readouterr()
    said = capsys.readouterr().out
    assert "ok  steps 5 to 6" in said and "ok  steps 7 to 8" in said


def test_a_branch_without_a_save_of_its_own_begins_again(trunk, trained, tmp_path):
    run = tmp_path / "branch"
    train(changed(branch(trunk, trained), train={"steps": 5, "save_every": 100}), run)
    Checkpointer(Run(run).checkpoints).set_aside(5, "damaged")
    train(branch(trunk, trained), run)
    train(branch(trunk, trained), tmp_path / "other")
    assert steps(run) == steps(tmp_path / "other")


def test_a_branch_of_a_rewound_run_skips_what_it_skipped(trunk, trained, tmp_path):
    train(trunk, trained, changes=Changes(rewind_to=2, skip=1))
    train(branch(trunk, trained), tmp_path / "branch")
    assert Run(tmp_path / "branch").skips() == Run(trained).skips() != ()
    whole = tmp_path / "whole"
    train(changed(trunk, schedule=COOLDOWN, train={"steps": 2}), whole)
    train(changed(trunk, schedule=COOLDOWN), whole, changes=Changes(rewind_to=2, skip=1))
    assert steps(tmp_path / "branch") == steps(whole)[4:]


def test_a_creation_that_is_interrupted_leaves_no_branch_without_its_skips(
    trunk, trained, tmp_path, monkeypatch
):
    train(trunk, trained, changes=Changes(rewind_to=2, skip=1))

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Experiment, "to_json", interrupted)
        train(branch(trunk, trained), tmp_path / "branch")
    assert not Run(tmp_path / "branch").exists()
    train(branch(trunk, trained), tmp_path / "branch")
    assert Run(tmp_path / "branch").skips() == Run(trained).skips() != ()
    # Nor does another run in the folder of an interrupted one skip anything.
    (tmp_path / "other").mkdir()
    (tmp_path / "branch/skips.json").rename(tmp_path / "other/skips.json")
    train(changed(trunk, train={"steps": 1}), tmp_path / "other")
    assert Run(tmp_path / "other").skips() == ()


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"train": {"batch_tokens": 16 * 48}}, r"train\.batch_tokens was 384, now 768"),
        ({"model": {"band": 6}}, r"model\.band was 12, now 6"),
    ],
)
def test_only_the_schedule_may_change(trunk, trained, tmp_path, groups, message):
    with pytest.raises(ConfigError, match=f"{message}: only the schedule may"):
        train(changed(branch(trunk, trained), **groups), tmp_path / "branch")
    assert not (tmp_path / "branch/experiment.json").exists()


def test_another_seed_or_optimizer_is_refused(trunk, trained, tmp_path):
    for fields in ({"seed": 1}, {"optimizer": AdamW()}):
        with pytest.raises(ConfigError, match="only the schedule may change"):
            train(branch(trunk, trained, **fields), tmp_path / "branch")


def test_a_state_needs_a_run_to_be_inherited_from(trunk):
    with pytest.raises(ConfigError, match="--inherit state needs a run to continue"):
        dataclasses.replace(trunk, inherit="state")
