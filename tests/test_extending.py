"""docs/extending.md: each diff applies to this version, trains, and does what it promises."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/extending.md").read_text()
DIFFS = dict(re.findall(r"^## (.+?)\n.*?```diff\n(.*?)```", TEXT, re.MULTILINE | re.DOTALL))
EXPERIMENT = """
import dataclasses
from gpt3jax.config import optimizer
from gpt3jax.config import *

def experiment():
    return Experiment(
        name="x",
        model=Model(n_layers=1, d_model=32, n_heads=2, d_head=16, vocabulary=300, context=48,
                    scan_layers=False{model}),
        data=Data(sources=(Source("words", {data!r}),)),
        schedule=Schedule(peak_learning_rate=1e-2, warmup_tokens=384, decay_tokens=1920{schedule}),
        train=Train(batch_tokens=8 * 48, steps=5, log_every=1),
        mesh=Mesh(data=1){rest},
        evaluate=Evaluate(every=5, windows=8, sample_tokens=0),
    )
"""


def apply(name, folder):
    """A copy of the package with one diff."""
    shutil.copytree(ROOT / "gpt3jax", folder / "gpt3jax", ignore=lambda *_: ["__pycache__"])
    subprocess.run(
        ["git", "apply", "--directory", "", "-"], cwd=folder, input=DIFFS[name], text=True,
        check=True, env={**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)},
    )  # fmt: skip


def run(folder, *words):
    environment = {**os.environ, "PYTHONPATH": str(folder), "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-m", "gpt3jax", *map(str, words)], cwd=folder, env=environment,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def trained(folder, data, *flags, model="", schedule="", rest=""):
    """The metrics of five steps, by name."""
    text = EXPERIMENT.format(data=str(data), model=model, schedule=schedule, rest=rest)
    (folder / "x.py").write_text(text)
    run(folder, "train", "x.py", "--run", "run", *flags)
    lines = (folder / "run/metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if "loss" in record]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5]
    assert all(np.isfinite(record["loss"]) for record in records)
    return {name: [record.get(name) for record in records] for name in records[0]}


@pytest.fixture(scope="session")
def plain(prepared, tmp_path_factory):
    """The package unchanged."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "gpt3jax").symlink_to(ROOT / "gpt3jax")
    return trained(folder, prepared)


def test_every_seam_has_an_example():
    assert len(DIFFS) == 8
    places = re.findall(r"^\| .* \| (.*) \|$", TEXT, re.MULTILINE)[1:]
    files = {file for place in places for file in re.findall(r"[\w/]+\.py", place)}
    changed = set(re.findall(r"^\+\+\+ b/gpt3jax/(\S+)", TEXT, re.MULTILINE))
    assert changed <= files and all((ROOT / "gpt3jax" / file).exists() for file in files)


@pytest.mark.parametrize("name", DIFFS)
def test_the_diff_applies(name, tmp_path):
    apply(name, tmp_path)


@pytest.mark.long
def test_an_optimizer_trains_and_says_what_it_stores(prepared, plain, tmp_path):
    apply("Optimizer", tmp_path)
    found = trained(tmp_path, prepared, rest=", optimizer=optimizer.Lion()")
    assert found["loss"][0] == plain["loss"][0] and found["loss"][1:] != plain["loss"][1:]
    assert found["loss"][-1] < found["loss"][0]
    manifest = json.loads((tmp_path / "run/checkpoints/5/manifest.json").read_text())
    leaves = [name for name in manifest["leaves"] if name.startswith("optimizer/")]
    assert any("/mu/" in name for name in leaves) and not any("/nu/" in name for name in leaves)
    stored = json.loads((tmp_path / "run/experiment.json").read_text())["optimizer"]
    assert stored["name"] == "lion"
    run(tmp_path, "train", "x.py", "--run", "run", "--optimizer.b2", "0.99", "--train.steps", "6")
    (tmp_path / "y.py").write_text(
        (tmp_path / "x.py").read_text().replace("optimizer.Lion()", "AdamW()")
    )
    memory = [
        json.loads(run(tmp_path, "plan", file, "--chips", "h100:8", "--json"))["memory_bytes"][
            "optimizer"
        ]
        for file in ("x.py", "y.py")
    ]
    assert memory[1] == 2 * memory[0] > 0


@pytest.mark.long
def test_a_schedule_decays_as_it_says(prepared, tmp_path):
    apply("Schedule", tmp_path)
    rates = trained(tmp_path, prepared, schedule=', decay="squared"')["learning_rate"]
    np.testing.assert_allclose(rates, 1e-2 * np.array([1, 0.60625, 0.325, 0.15625, 0.1]))


@pytest.mark.long
def test_a_metric_of_the_forward_pass_is_logged(prepared, plain, tmp_path):
    apply("Metric of the forward pass", tmp_path)
    found = trained(tmp_path, prepared)
    assert found["loss"] == plain["loss"]
    # After the final norm, whose gain is 1 at first; its epsilon takes a little.
    assert 0.95 < found["final_mean_square"][0] < 1


@pytest.mark.long
def test_a_metric_of_the_update_is_logged(prepared, plain, tmp_path):
    apply("Metric of the update", tmp_path)
    found = trained(tmp_path, prepared)
    assert found["loss"] == plain["loss"] and min(found["update_norm"]) > 0


@pytest.mark.long
def test_an_activation_is_chosen_by_its_name(prepared, plain, tmp_path):
    apply("Activation", tmp_path)
    found = trained(tmp_path, prepared, model=', activation="relu_squared"')
    assert found["loss"][-1] < found["loss"][0] and found["loss"] != plain["loss"]


@pytest.mark.long
def test_attention_scores_are_capped(prepared, plain, tmp_path):
    """Scores of 1,000 and 900 become equal; those of a model that was just initialised stay."""
    apply("Attention kernel", tmp_path)
    script = (
        "import jax.numpy as jnp\nfrom gpt3jax.model.attention import attention_weights\n"
        "q = jnp.ones((1, 2, 1, 1))\nk = jnp.array([1000.0, 900.0]).reshape(1, 2, 1, 1)\n"
        "print(attention_weights(q, k, None)[0, 0, 1].tolist())"
    )
    for folder, expected in ((tmp_path, "[0.5, 0.5]"), (ROOT, "[1.0, 0.0]")):
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True,
            text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == expected
    assert trained(tmp_path, prepared)["loss"] == pytest.approx(plain["loss"], rel=1e-5)


@pytest.mark.long
def test_front_matter_is_left_out(corpus, tmp_path):
    apply("Corpus", tmp_path)
    words = "".join(file.read_text() for file in sorted(corpus.glob("*.txt")))
    (tmp_path / "a.md").write_text(f"---\ntitle: x\n---\n{words}")
    run(
        tmp_path, "data", "prepare", "--corpus", "a.md", "--out", "data", "--context", "48",
        "--vocabulary", "300",
    )  # fmt: skip
    shown = run(tmp_path, "data", "show", "data")
    assert "cat" in shown and "title" not in shown
    assert trained(tmp_path, tmp_path / "data")


@pytest.mark.long
def test_a_tracker_receives_every_loss(prepared, plain, tmp_path):
    apply("Tracker", tmp_path)
    losses = trained(tmp_path, prepared, "--tracker", "losses")["loss"]
    lines = (tmp_path / "run/losses.csv").read_text().splitlines()
    assert lines == [f"{step},{loss}" for step, loss in enumerate(losses, 1)]
