"""What version 0.1 wrote is read: a run, its data and a sweep, in fixtures/version_0.1.tar.xz.

Made by commit d6abee0 on CPUs (jax 0.10.2, 2026-11-27): `data prepare` of 20 generated texts with a
context of 16, `train x.py` to step 6 and again to 12, and `sweep x.py --trials 2`. Checkpoint 6,
TensorBoard files and what a sweep draws were left out. What that version printed is below.
"""

import json
import tarfile
from pathlib import Path

import pytest

import gpt3jax
from gpt3jax import cli

ARCHIVE = Path(__file__).parent / "fixtures/version_0.1.tar.xz"
LOSS, BITS_PER_BYTE = 3.900753774925282, 2.2334070894926072
TEXT = "the cat sky mat\ufffds mat-\ufffd sunated\x0f "


@pytest.fixture
def old(tmp_path, monkeypatch, one_device):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gpt3jax.runtime.memory.retain_freed_memory", lambda: None)
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def run(capsys, *words):
    assert cli.main(list(words)) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_an_old_checkpoint_is_verified_and_has_the_loss_and_text_it_had(old, capsys):
    verdicts = json.loads(run(capsys, "verify", "run", "--json"))
    assert {each["what"] for each in verdicts} == {"data words", "tokenizer", "checkpoint 12"}
    found = json.loads(run(capsys, "perplexity", "run", "--json"))
    assert found["val_loss"] == pytest.approx(LOSS, rel=1e-6) and found["windows"] == 19
    assert found["val_bits_per_byte"] == pytest.approx(BITS_PER_BYTE, rel=1e-6)
    model = gpt3jax.load("run")
    drawn = gpt3jax.generate(model, "the cat", new_tokens=12, seed=3, temperature=1.0)
    assert drawn == [TEXT.removeprefix("the cat")]


def test_an_old_run_resumes_and_is_reported(old, capsys):
    run(capsys, "train", "x.py", "--run", "run", "--train.steps", "14")
    steps = [
        json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()
    ]
    assert steps[-1] == 14 and steps == sorted(steps)
    assert run(capsys, "data", "show", "run", "--batch", "2", "--rows", "1")
    run(capsys, "report", "run")
    assert Path("run/report/index.html").exists()


def test_a_renamed_or_unknown_field_of_an_old_experiment_is_named(old, capsys):
    file = Path("run/experiment.json")
    file.write_text(file.read_text().replace('"band"', '"bandwidth"'))
    assert cli.main(["verify", "run"]) == 2
    assert "model.bandwidth is not known; model.band is" in capsys.readouterr().err


def test_an_old_sweep_is_complete(old, capsys):
    out = run(capsys, "sweep", "x.py", "--trials", "2", "--", "--train.steps", "4")
    assert "best: trial 0, val_loss 3.2645" in out
