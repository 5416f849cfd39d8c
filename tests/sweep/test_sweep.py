"""A sweep from beginning to page, with a program that stands for training and takes no time."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from building import changed

from gpt3jax.commands.sweep import sweep
from gpt3jax.errors import ConfigError
from gpt3jax.sweep import show, store
from gpt3jax.sweep.driver import Plan, Sweep
from gpt3jax.sweep.page import write_results
from gpt3jax.sweep.plots import draw_figures
from gpt3jax.sweep.worker import shares

optuna.logging.set_verbosity(optuna.logging.ERROR)
ROOT = Path(__file__).parents[2]
FAKE = shlex.join([sys.executable, str(Path(__file__).with_name("fake_train.py"))])


@pytest.fixture
def made(experiment, tmp_path, monkeypatch):
    """Writes an experiment file whose trials have these x; None: drawn from 0 to 2."""
    monkeypatch.chdir(tmp_path)

    experiment = changed(experiment, train={"steps": 2})  # Of 768 tokens.

    def make(*first, space='{"x": trial.suggest_float("x", 0, 2)}'):
        path = tmp_path / "x.py"
        path.write_text(
            "from gpt3jax.config import Experiment\n\n\ndef experiment():\n"
            f"    return Experiment.from_json({experiment.to_json()!r})\n\n\n"
            f"def space(trial):\n    return {space}\n\n\n"
            f"def first():\n    return {[{'x': x} for x in first]}\n"
        )
        return path

    return make


def plan(file, trials, name="s", **changes):
    fields = {
        "file": file, "overrides": (), "trials": trials, "workers": 2, "sampler": "tpe",
        "pruner": "none", "seed": 0, "storage": f"{name}.journal", "folder": Path(name),
        "launch": FAKE,
    }  # fmt: skip
    return Plan(**fields | changes)


def swept(made_plan):
    return Sweep(made_plan, store.open_storage(made_plan.storage)).run(lambda trials: None)


WIDE = '{"x": trial.suggest_float("x", 0, 9)}'


def test_trials_are_pruned_diverged_or_failed_with_a_reason(made, monkeypatch):
    monkeypatch.setattr("gpt3jax.sweep.driver.STARTUP", 3)
    file = made(0.5, 6.0, 3.0, 0.1, 0.3, 2.5, 0.05, space=WIDE)
    monkeypatch.setattr("gpt3jax.sweep.driver.POLL_S", 0.01)
    slow = ("--slow", "0.2")
    trials = swept(plan(file, 7, workers=1, pruner="median", overrides=slow))
    states = [trial.state for trial in trials]
    assert states == [
        "complete",
        "diverged",
        "failed",
        "complete",
        "complete",
        "pruned",
        "complete",
    ]
    diverged, failed, pruned = trials[1], trials[2], trials[5]
    # The first measurement after a quarter of the tokens.
    assert max(pruned.curve) == 200 and "after 200 tokens is too high" in pruned.why
    assert diverged.why == "step 3: loss is nan. training diverged" and len(diverged.curve) == 3
    assert failed.attempts == 3 and "the disk is full" in failed.why
    assert Path("s/trial-002/starts").read_text() == "xxx"
    assert store.best(trials).number == 6
    page = write_results(trials, {}, Path("s")).read_text()
    assert all(words in page for words in (pruned.why, diverged.why, "the disk is full"))
    assert f"<pre>{FAKE} {file} --run s/trial-006 --slow 0.2 --x 0.05</pre>" in page
    rows = list(csv.DictReader(Path("s/trials.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == states
    assert float(rows[6]["val_loss"]) == trials[6].val_loss == pytest.approx(1.0025)
    assert rows[6]["command"] == trials[6].command


def test_a_loss_above_the_untrained_loss_is_divergence(made, tmp_path):
    rises = tmp_path / "rises.py"
    text = Path(FAKE.split()[-1]).read_text().replace("x * x + 5 / (1 + k)", "x + k")
    rises.write_text(text)
    (trial,) = swept(plan(made(1.0), 1, launch=f"{sys.executable} {rises}",
                          overrides=("--slow", "1")))  # fmt: skip
    assert trial.state == "diverged" and "untrained 1.000" in trial.why
    assert set(trial.curve) == {0, 100}


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
@pytest.mark.in_ci("tpe")
def test_the_same_seed_gives_the_same_trials_and_the_same_best(made, sampler):
    file, best = made(1.5), []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        workers = 1 if sampler == "tpe" else 2
        trials = swept(plan(file, 8, name, sampler=sampler, seed=seed, workers=workers))
        assert trials[0].params == {"x": 1.5} and {t.state for t in trials} == {"complete"}
        best.append((store.best(trials).number, [t.params for t in trials]))
    assert best[0] == best[1]
    assert (best[0] == best[2]) is (sampler == "grid")
    if sampler == "grid":
        assert [p["x"] for p in best[0][1][1:]] == pytest.approx([i / 3 for i in range(7)])


def test_invalid_overrides_end_the_sweep_and_requeue_other_trials(made):
    file = made(1.0, 4.0, space=WIDE)
    with pytest.raises(ConfigError, match="trial 1 cannot be trained: --x is 4") as refusal:
        swept(plan(file, 3, launch=FAKE))
    assert "Fix space() of" in str(refusal.value)
    with pytest.raises(ConfigError, match="its seed is 0, not 3"):
        swept(plan(file, 3, seed=3))


def test_trials_can_be_added_without_repeating_others(made):
    file = made(0.5)
    first = swept(plan(file, 2))
    more = swept(plan(file, 4))
    assert more[:2] == first and [t.state for t in more] == ["complete"] * 4
    assert all(Path(f"s/trial-{n:03}/starts").read_text() == "x" for n in range(4))


def test_a_stopped_sweep_resumes(made):
    file = made(0.5)
    words = [
        sys.executable, "-m", "gpt3jax", "sweep", str(file), "--trials", "4", "--workers", "2",
        "--storage", "s.journal", "--pruner", "none", "--launch", FAKE, "--", "--slow", "0.3",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
    while not Path("s/trial-001/metrics.jsonl").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "the sweep was stopped" in out
    logged = Path("s/trial-000/metrics.jsonl").read_text()
    assert 0 < len(logged.splitlines()) < 5
    done = subprocess.run([*words, "--seed", "0"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "its overrides is" in done.stderr
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "4 trials: 4 complete" in done.stdout and "best: trial" in done.stdout
    assert Path("s/trial-000/metrics.jsonl").read_text().startswith(logged)
    assert Path("s/trial-000/starts").read_text() == "xx"


def test_texts_of_trials_are_escaped(made):
    file = made(1.0, space='{"x": trial.suggest_float("x", 0, 2)}')
    trials = swept(plan(file, 1, overrides=("--name", "<script>a</script>")))
    page = write_results(trials, {}, Path("s")).read_text()
    assert "<script" not in page and "&lt;script&gt;" in page


def test_json_has_every_trial_and_the_importances(made, capsys):
    space = '{"x": trial.suggest_float("x", 0, 2), "y": trial.suggest_categorical("y", [1, "b"])}'
    code = sweep(made(space=space), trials=8, workers=2, storage="s.journal", sampler="random",
                 pruner="none", launch=FAKE, json=True)  # fmt: skip
    said = json.loads(capsys.readouterr().out)
    assert code == 0 and [t["number"] for t in said["trials"]] == list(range(8))
    assert set(said["importance"]) == {"x", "y"} and said["importance"]["x"] > 0.5
    drawn = {file.name for file in Path("s").glob("*.png")}
    assert drawn == {"loss_by_x.png", "loss_by_y.png", "importance.png",
                     "parallel_coordinates.png", "learning_curves.png"}  # fmt: skip
    assert "src='data:image/png;base64,iVBOR" in Path(said["page"]).read_text()


def test_workers_share_the_machines_cores_and_gpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setattr(sys, "platform", "linux")
    both = shares(2)
    assert [sorted(share.cores) for share in both] == [[0, 2, 4], [1, 3]]
    assert [share.gpus for share in both] == ["0,2", "1,3"]
    assert shares(1) == [None]
    with pytest.raises(ConfigError, match="5 workers, but 4 GPUs"):
        shares(5)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [share.gpus for share in shares(2)] == [None, None]


def test_the_table_marks_the_best_and_a_summary_counts(made):
    trials = swept(plan(made(0.5, 0.2), 2))
    assert show.summary(trials).startswith("2 trials: 2 complete. ")
    assert list(show.table(trials).columns[0].cells) == ["0", "*1"]


@pytest.mark.parametrize("choices", [[1, "b", None, True], ["b", 1, None, True], [None] * 4])
@pytest.mark.parametrize("losses", [[2.0, 1.0, 3.0, 4.0], [None] * 4], ids=["losses", "no losses"])
def test_choices_of_several_types_are_drawn(tmp_path, choices, losses):
    """In any order, and whether or not any trial has a loss."""
    state = "complete" if losses[0] else "diverged"
    trials = [
        store.Trial(n, {"x": n / 4, "y": y}, state, "", loss, {}, "", 1.0, 1.0, "", 1)
        for n, (y, loss) in enumerate(zip(choices, losses, strict=True))
    ]
    drawn = {file.stem for file in draw_figures(trials, {}, tmp_path)}
    every = {"loss_by_x", "loss_by_y", "parallel_coordinates"}
    assert drawn == (every if losses[0] else set())
