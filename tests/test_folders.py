"""A run is used from any folder: its data and its parent are found from there, or it says which."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpt3jax import cli
from gpt3jax.commands.train import _next_commands
from gpt3jax.run_dir import Run

ROOT = Path(__file__).parents[1]
WORDS = """
from gpt3jax.config import *

def experiment():
    return Experiment(
        name="words",
        model=Model(n_layers=1, d_model=16, n_heads=2, d_head=8, vocabulary=300, context=48,
                    band=12, scan_layers=False),
        data=Data(sources=(Source("words", "data/words"),)),
        schedule=Schedule(peak_learning_rate=1e-2, warmup_tokens=100, decay_tokens=10_000),
        train=Train(batch_tokens=8 * 48, steps=4, log_every=1, save_every=2),
        mesh=Mesh(data=1),
        evaluate=Evaluate(every=4, windows=8, prompt="the cat", sample_tokens=4),
    )
"""
TUNED = """
import dataclasses
from words import experiment as words

def experiment():
    return dataclasses.replace(words(), name="tuned", init_from="runs/words@2")
"""


@pytest.fixture
def gpt3jax(capsys, monkeypatch):
    """Run a command line in this process: exit code, stdout, stderr."""
    monkeypatch.setattr("gpt3jax.runtime.memory.retain_freed_memory", lambda: None)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words):
        code = cli.main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def project(prepared, tmp_path, monkeypatch, gpt3jax, one_device):
    """A folder with data, experiments, a run, and a run that began from a checkpoint of it."""
    project = tmp_path / "project"
    shutil.copytree(prepared, project / "data/words")
    (project / "experiments").mkdir()
    (project / "experiments/words.py").write_text(WORDS)
    (project / "experiments/tuned.py").write_text(TUNED)
    monkeypatch.chdir(project)
    for name in ("words", "tuned"):
        code, _, err = gpt3jax("train", f"experiments/{name}.py")
        assert code == 0, err
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return project


def each_command(gpt3jax, project, *more):
    """What is printed by what depends on the data of a run or of its parent, without paths."""
    run, tuned = project / "runs/words", project / "runs/tuned"
    experiment = project / "experiments/words.py"
    lines = [
        ("verify", run), ("verify", tuned, "--replay", "0:4"), ("data", "show", run),
        ("perplexity", run, "--windows", 4), ("train", experiment, "--run", run),
    ]  # fmt: skip
    said = []
    for line in (*lines, *((*command, run, *words) for command, words in more)):
        code, out, err = gpt3jax(*line)
        assert code == 0, (line, out, err)
        said.append(out.replace(str(project), ""))
    code, out, _ = gpt3jax("doctor", experiment, "--run", run, "--json")
    (data,) = [check for check in json.loads(out) if check["name"] == "data"]
    assert data["status"] == "ok", data
    return said[:4]


def use_paths_as_named(project):
    """Make the runs as they were stored before their paths were absolute."""
    for name in ("words", "tuned"):
        run = Run(project / "runs" / name)
        for file in (run.experiment_file, run.identity_file):
            text = file.read_text()
            file.write_text(text.replace(f"{project}/", ""))
        assert '"data/words"' in run.experiment_file.read_text()
    assert Run(project / "runs/tuned").identity()["parent"]["path"] == "runs/words"


@pytest.mark.long
def test_a_run_works_from_any_folder_and_after_its_project_was_moved(
    project, gpt3jax, tmp_path, monkeypatch
):
    stored = json.loads(Run(project / "runs/words").experiment_file.read_text())
    assert stored["data"]["sources"][0]["path"] == str(project / "data/words")
    asked = ("--tasks", "two_digit_addition", "--examples", 2, "--shots", 0, "--beams", 1)
    said = each_command(
        gpt3jax, project, (["generate"], ("--new-tokens", 4)), (["evaluate"], asked),
        (["data", "overlap"], ("--task", "two_digit_addition", "--examples", 4)), (["report"], ()),
        (["inspect"], ("--prompt", "the", "--new-tokens", 2)),
    )  # fmt: skip
    # Other data of the same name, where we are, is not taken for that of the run.
    shutil.copytree(ROOT / "experiments", "data/words")
    use_paths_as_named(project)
    assert each_command(gpt3jax, project) == said
    moved = project.rename(tmp_path / "moved")
    assert each_command(gpt3jax, moved) == said


def test_a_run_names_its_missing_data_or_parent_and_resumes_once_it_is_found(project, gpt3jax):
    run, data = project / "runs/words", project / "data/words"
    away = data.rename(project / "away")
    for line in (("perplexity", run), ("data", "show", run), ("verify", run)):
        code, out, err = gpt3jax(*line)
        said = out + err
        assert code in (1, 2) and f"data {data} does not exist" in said, said
    named = ("--run", run, "--data.sources.0.path", away)
    assert gpt3jax("train", project / "experiments/words.py", *named)[0] == 0
    assert gpt3jax("verify", run)[0] == 0
    shutil.rmtree(run)
    code, _, err = gpt3jax("verify", project / "runs/tuned", "--replay", "0:4")
    assert code == 2 and str(run) in err and err.count("\n") == 1


def test_an_experiment_in_any_folder_builds_on_those_of_the_repository(tmp_path):
    lines = ["from tiny import experiment", "import gpt3, in_context"]
    (tmp_path / "mine.py").write_text("\n".join(lines))
    words = [sys.executable, "-m", "gpt3jax", "inspect", "mine.py", "--out", "page.html"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").exists()


def test_the_commands_printed_after_training_work_as_printed(project, monkeypatch):
    """By a shell whose PATH does not name us."""
    monkeypatch.chdir(project)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    experiment = Run(Path("runs/words")).experiment()
    lines = _next_commands(Path("runs/words"), experiment, 4)
    assert shutil.which(shlex.split(lines[0])[0])
    assert "--prompt 'the cat'" in lines[0] and "def main" not in "".join(lines)
    for line in lines[:3]:
        done = subprocess.run(line, shell=True, capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stderr)
    tuned = Run(Path("runs/tuned")).experiment()
    assert not any(" train " in line for line in _next_commands(Path("runs/tuned"), tuned, 4))
