"""The report of a scaling law: made of runs on disk, honest about what was held out."""

import html
import json

import pytest

from gpt3jax.commands.report import report
from gpt3jax.config import Data, Experiment, Model, Schedule, Source, Train
from gpt3jax.errors import ConfigError
from gpt3jax.model.param_specs import flops_per_token
from gpt3jax.plan.scaling_laws import matrix_parameters, read
from gpt3jax.plan.show import expected_loss
from gpt3jax.report.page import PF_DAY
from gpt3jax.report.scaling_page import write_laws

SIZES = ((1, 32), (2, 32), (2, 64), (4, 64), (4, 128))


def make_run(path, layers, width, tokens, loss, *, data="0" * 16, seen=None):
    experiment = Experiment(
        name="x",
        model=Model(layers, width, 2, width // 2, vocabulary=300, context=16),
        data=Data((Source("text", "data/text"),)),
        schedule=Schedule(1e-3, warmup_tokens=10, decay_tokens=1000),
        train=Train(batch_tokens=32, tokens=tokens),
    )
    path.mkdir(parents=True)
    (path / "experiment.json").write_text(experiment.to_json())
    source = {"name": "text", "manifest": data}
    (path / "identity.json").write_text(
        json.dumps({"data": {"tokenizer": "t", "sources": [source]}})
    )
    records = [
        {"step": k, "tokens": round((seen or tokens) * k / 4), "val_loss": loss * (2 - k / 4)}
        for k in range(5)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return experiment


def power_law(experiment, tokens):
    return 0.8 * (tokens * flops_per_token(experiment.model) / PF_DAY) ** -0.07


@pytest.fixture
def runs(tmp_path):
    """Two budgets of tokens per size, on L = 0.8 C^-0.07; the largest 0.1 nats below it."""
    for number, (layers, width) in enumerate(SIZES):
        for times in (1, 2):
            probe = make_run(tmp_path / f"probe{number}{times}", layers, width, 320, 1.0)
            tokens = 3200 * 8**number * times
            loss = power_law(probe, tokens) - (0.1 if (number, times) == (4, 2) else 0)
            make_run(tmp_path / f"runs/{number}-{times}", layers, width, tokens, loss)
    return sorted((tmp_path / "runs").iterdir())


def test_the_prediction_of_the_largest_run_is_reported_in_nats(runs, capsys):
    unfinished = runs[0].parent / "unfinished"
    make_run(unfinished, 1, 32, 3200, 9.9, seen=1600)
    report((*runs, unfinished), scaling_law=True)
    page = runs[0].parent / "scaling-law/index.html"
    said, text = capsys.readouterr().out, page.read_text()
    assert "1 of the runs are not at their end: left out" in said
    assert "compute: L = 0.8 C^-0.07, fitted to 9 runs" in said
    line = next(x for x in said.splitlines() if x.startswith("held out: 4-2") and "by compute" in x)
    assert "2.0 times the compute" in line and "off by +0.1000, outside the 95 % prediction" in line
    assert "Student's t, 7 degrees of freedom" in line
    assert html.escape(line.removeprefix("held out: ")) in text
    assert text.count("src='data:image/png;base64,iVBOR") == 3
    assert not any(word in text for word in ("http:", "https:", "url(", "<script"))


def test_plan_prints_the_loss_predicted_by_the_law(runs, tmp_path, capsys):
    report(tuple(runs), tmp_path / "out", scaling_law=True, json=True)
    said = json.loads(capsys.readouterr().out)
    assert len(said["points"]) == 10 and said["laws"][0]["kind"] == "compute"
    laws = read(tmp_path / "out/scaling_law.json")
    larger = make_run(tmp_path / "larger", 8, 128, 10**8, 1.0)
    found = expected_loss(larger, laws)
    assert found["low"] <= found["loss"] <= found["high"] and found["times_compute"] > 1
    assert found["loss"] == pytest.approx(power_law(larger, 10**8), rel=0.05)
    assert matrix_parameters(larger.model) == 12 * 8 * 128**2


def test_different_data_and_too_few_runs_are_rejected(runs, tmp_path):
    make_run(tmp_path / "other", 1, 32, 3200, 3.0, data="1" * 16)
    with pytest.raises(ConfigError, match="have different data"):
        write_laws([*runs, tmp_path / "other"])
    with pytest.raises(ConfigError, match="Train sizes at more budgets"):
        write_laws(runs[:3])
    with pytest.raises(ConfigError, match="is not a run"):
        write_laws([tmp_path / "none"])
