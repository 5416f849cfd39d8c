"""`import gpt3jax` as a notebook uses it, and the training loop on one page."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from building import changed, logits_of, random_run

import gpt3jax
from gpt3jax.commands.generate import generate as command
from gpt3jax.run_dir import Run
from gpt3jax.train.train import train
from gpt3jax.user_code import load_module

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(experiment, tmp_path):
    return random_run(tmp_path / "run", experiment)


def test_what_is_loaded_generates_what_the_command_prints(run, capsys):
    model = gpt3jax.load(run.path)
    (text,) = gpt3jax.generate(model, "the cat", new_tokens=12, seed=3)
    command(run.path, prompt="the cat", new_tokens=12, seed=3)
    assert capsys.readouterr().out == f"the cat{text}\n"


def test_captured_logits_are_those_of_the_forward_pass(run):
    model = gpt3jax.load(run.path, step=5)
    output = gpt3jax.capture(model, "the cat sat", want=("residual", "heads"))
    tokens = np.array([model.tokenizer.encode("the cat sat")])
    expected = logits_of(model.params, tokens, model.model)[..., : model.model.vocabulary]
    np.testing.assert_allclose(output.logits, expected, atol=1e-5)
    shape = (model.model.n_layers, 1, tokens.shape[1], model.model.d_model)
    assert output.activations["residual"].shape == shape


def test_evaluate_returns_a_record_for_each_task_and_number_of_shots(run):
    tasks, model = ["two_digit_addition"], gpt3jax.load(run.path)
    rows = gpt3jax.evaluate(model, tasks, shots=(0, 1), examples=5, beams=1)
    assert [(row["task"], row["shots"]) for row in rows] == [(tasks[0], 0), (tasks[0], 1)]
    assert all(0 <= row["score"] <= 1 and row["truth_nats"] > 0 for row in rows)


def test_the_package_is_imported_without_jax():
    script = (
        "import sys, gpt3jax\nassert 'jax' not in sys.modules\n"
        "assert 'load' in dir(gpt3jax)\ngpt3jax.Experiment\nassert 'jax' not in sys.modules\n"
        "assert not hasattr(gpt3jax, 'nothing')"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=60)


def test_the_loop_on_one_page_has_the_losses_of_gpt3jax_train(experiment, one_device, tmp_path):
    file = ROOT / "experiments/minimal.py"
    assert len(file.read_text().splitlines()) <= 80
    experiment = changed(experiment, train={"steps": 5})
    params, losses = load_module(file).train(experiment, 5)
    train(experiment, tmp_path / "run")
    logged = [record["loss"] for record in Run(tmp_path / "run").metrics() if "loss" in record]
    assert losses == logged
    saved = gpt3jax.load(tmp_path / "run").params
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(saved), strict=True):
        np.testing.assert_array_equal(ours, theirs)
