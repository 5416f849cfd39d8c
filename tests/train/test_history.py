"""What happened is read from the run's record, whatever the settings are today."""

import json
import re

import numpy as np
import pytest
from building import changed

from gpt3jax.commands.data import data_show
from gpt3jax.commands.verify import verify
from gpt3jax.config import Mesh
from gpt3jax.errors import ConfigError
from gpt3jax.run_dir import Changes, Run
from gpt3jax.train.history import sessions, windows_read
from gpt3jax.train.monitor import event_log
from gpt3jax.train.train import train

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def ramped(short):
    """Batches grow from 1 window to 16 over 40 windows; not every step is due to be logged."""
    return changed(
        short, train={"steps": 12, "batch_tokens": 16 * 48, "microbatch": 1, "log_every": 5,
                      "ramp_from_tokens": 48, "ramp_tokens": 40 * 48},
    )  # fmt: skip


def batches(path, steps):
    return [windows_read(Run(path), step) for step in range(1, steps + 1)]


def shown(path, batch, capsys):
    """The windows that `data show` prints of a batch."""
    capsys.readouterr()
    data_show(path, batch=batch, rows=99)
    return [int(at) for at in re.findall(r"^--- window (\d+)", capsys.readouterr().out, re.M)]


@pytest.mark.long
def test_a_ramp_reads_the_same_batches_at_the_same_rates_with_any_microbatch(
    ramped, tmp_path, capsys
):
    train(ramped, tmp_path / "one")
    train(changed(ramped, train={"steps": 4}), tmp_path / "two")
    moved = changed(ramped, train={"microbatch": 8}, model={"scan_layers": True})
    train(moved, tmp_path / "two")
    one, two = (Run(tmp_path / name).metrics() for name in ("one", "two"))
    assert [r["step"] for r in one] == [r["step"] for r in two]
    for a, b in zip(one[1:], two[1:], strict=True):
        for name in ("sequences", "batch_tokens", "learning_rate"):
            assert a[name] == b[name], (a["step"], name)
        np.testing.assert_allclose(b["loss"], a["loss"], rtol=1e-5)
    sizes = list(map(len, batches(tmp_path / "two", 12)))
    assert sizes == sorted(sizes) and len(set(sizes)) > 5 and sizes[-1] == 16
    assert any(size % 8 for size in sizes[4:]), "whole microbatches were not asked for"
    out = capsys.readouterr().out
    assert "train.microbatch was 1, now 8" in out and "model.scan_layers was false" in out
    ends = {record["step"]: record["sequences"] for record in two}
    in_a_row = [step for step in ends if step + 1 in ends]
    assert len(in_a_row) > 5, "each step whose next batch is larger is logged"
    for step in in_a_row:
        expected = list(range(ends[step], ends[step + 1]))
        assert shown(tmp_path / "two", step, capsys) == expected
    assert verify(tmp_path / "two", "0:12") == 0, "with the microbatch that each step had"
    assert [each.experiment.train.microbatch for each in sessions(Run(tmp_path / "two"))] == [1, 8]


def test_a_changed_batch_is_read_from_the_record(short, tmp_path, capsys):
    train(changed(short, train={"steps": 6, "log_every": 4}), tmp_path)
    smaller = changed(short, train={"steps": 10, "log_every": 4, "batch_tokens": 4 * 48})
    with pytest.raises(ConfigError, match="--allow-change train.batch_tokens"):
        train(smaller, tmp_path)
    train(smaller, tmp_path, changes=Changes(allow_change=("train",)))
    expected = [range(8 * k, 8 * k + 8) for k in range(6)]
    expected += [range(48 + 4 * k, 52 + 4 * k) for k in range(4)]
    assert batches(tmp_path, 10) == expected
    assert windows_read(Run(tmp_path), 12) == range(68, 72), "of steps to come, as things stand"
    assert shown(tmp_path, 2, capsys) == list(expected[2])
    assert verify(tmp_path, "0:10") == 0
    assert verify(tmp_path, "5:9") == 0, "across the change"


def test_a_rewind_passes_over_what_was_read_and_can_be_asked_for_twice(short, tmp_path):
    train(changed(short, train={"steps": 4}), tmp_path)
    smaller = changed(short, train={"steps": 8, "batch_tokens": 4 * 48})
    train(smaller, tmp_path, changes=Changes(allow_change=("train",)))
    back = Changes(allow_change=("train",), rewind_to=2, skip=4)
    train(smaller, tmp_path, changes=back)
    assert Run(tmp_path).skips()[0].windows == 2 * 8 + 2 * 4
    assert train(smaller, tmp_path, changes=back).steps_taken == 0
    assert [e["event"] for e in event_log.read(Run(tmp_path).ledger_file)].count("rewind") == 1
    assert batches(tmp_path, 4)[1:] == [range(8, 16), range(16, 20), range(20, 24)]


@pytest.mark.long
def test_another_dtype_is_refused_or_recorded_and_replayed_as_it_was(short, tmp_path, capsys):
    train(changed(short, train={"steps": 2}), tmp_path)
    other = changed(short, train={"steps": 4}, model={"dtype": "bfloat16"})
    with pytest.raises(ConfigError, match="model.dtype was .float32., now .bfloat16."):
        train(other, tmp_path)
    train(other, tmp_path, changes=Changes(allow_change=("model.dtype",)))
    (event,) = (e for e in event_log.read(Run(tmp_path).ledger_file) if e["event"] == "change")
    assert event["what"] == ['model.dtype was "float32", now "bfloat16"']
    assert [each.dtype for each in sessions(Run(tmp_path))] == ["float32", "bfloat16"]
    assert train(changed(other, train={"steps": 5}), tmp_path).steps_taken == 1, "recorded once"
    assert verify(tmp_path, "0:4") == 0
    with pytest.raises(ConfigError, match="model.dtype was .bfloat16., now .float32."):
        train(short, tmp_path)


def test_a_replay_compares_only_what_is_there(short, tmp_path, capsys):
    train(changed(short, train={"steps": 8, "log_every": 4, "save_every": 8}), tmp_path)
    with pytest.raises(ConfigError, match="nothing was logged or saved.*Use 0:4"):
        verify(tmp_path, "0:3")
    metrics = Run(tmp_path).metrics_file
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    for record in lines:
        if record["step"] == 4 and "loss" in record:
            record["loss"] += 1e-6
    metrics.write_text("".join(json.dumps(record) + "\n" for record in lines))
    capsys.readouterr()
    assert verify(tmp_path, "0:8") == 1
    *_, summary = capsys.readouterr().out.strip().splitlines()
    assert summary.startswith("BAD") and "1 step differ" in summary
    assert verify(tmp_path, "4:8") == 0, "of the steps that were asked for"


def test_a_run_without_recorded_settings_is_read_where_its_record_suffices(
    ramped, short, tmp_path, capsys
):
    """As an earlier version left it: no settings in the ledger, logged steps in the metrics."""

    def strip(path):
        run = Run(path)
        events = [
            {k: v for k, v in event.items() if k not in ("experiment", "dtype", "sequences")}
            for event in event_log.read(run.ledger_file)
        ]
        run.ledger_file.write_text("".join(json.dumps(event) + "\n" for event in events))
        kept = [r for r in run.metrics() if r["step"] % 5 == 0 or r["step"] == 12]
        run.metrics_file.write_text("".join(json.dumps(record) + "\n" for record in kept))

    even = changed(short, train={"steps": 12, "log_every": 5})
    for name, experiment in (("even", even), ("ramped", ramped)):
        train(experiment, tmp_path / name)
        before = batches(tmp_path / name, 12)
        strip(tmp_path / name)
        run = Run(tmp_path / name)
        assert windows_read(run, 5) == before[4] and windows_read(run, 10) == before[9]
        if name == "even":
            assert batches(tmp_path / name, 12) == before
            assert verify(tmp_path / name, "0:12") == 0
            assert "not recorded" in capsys.readouterr().out
            continue
        with pytest.raises(ConfigError, match="does not say which windows step 3 read"):
            windows_read(run, 3)
        train(changed(ramped, train={"steps": 13}), tmp_path / name)
        assert windows_read(run, 13) == range(before[11].stop, before[11].stop + 16)


def test_the_first_step_learns_and_the_last_one_has_the_floor(short, tmp_path):
    tokens = 4 * 8 * 48
    whole = changed(
        short, schedule={"warmup_tokens": tokens // 2, "decay_tokens": tokens},
        train={"steps": None, "tokens": tokens},
    )  # fmt: skip
    train(whole, tmp_path)
    rates = [r["learning_rate"] for r in Run(tmp_path).metrics() if "learning_rate" in r]
    assert rates == pytest.approx([0.005, 0.01, 0.0055, 0.001])


def test_a_mesh_that_cannot_be_had_again_is_said(short, tmp_path, capsys):
    train(short, tmp_path)
    run = Run(tmp_path)
    text = run.ledger_file.read_text()
    assert text.count('"mesh": {"data": 1') == 2, "as asked, and as it was"
    text = text.replace('"mesh": {"data": 1', '"mesh": {"data": 4')
    run.ledger_file.write_text(text)
    assert verify(tmp_path, "0:8") == 0
    assert "mesh was {'data': 4" in capsys.readouterr().out
    assert sessions(run)[0].mesh["data"] == 4 and Mesh(**sessions(run)[0].mesh)
