"""The scripts in benchmarks/ run at toy size; else a renamed field would break them unseen."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpt3jax.model.param_specs import count_params

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "benchmarks/on_gpu")]

import one_side  # noqa: E402
import record  # noqa: E402
import speed  # noqa: E402
import table  # noqa: E402

TOY = one_side.Shape(n_layers=1, n_heads=2, d_head=8, vocabulary=300, context=16, batch=2)


@pytest.fixture(autouse=True)
def few(monkeypatch, one_device):
    monkeypatch.setattr(one_side, "STEPS", {"cpu": 1, "accelerator": 1})
    monkeypatch.setattr(one_side, "DECODING", {"decode8": (2, 3, 4), "first": (1, 9, 1)})
    monkeypatch.setattr(one_side, "retain_memory", lambda: None)


@pytest.mark.parametrize("what", ["train", "decode8", "first"])
@pytest.mark.parametrize("library", ["gpt3jax", "floor"])
def test_a_side_measures_the_model_of_its_shape(what, library):
    side = one_side.prepare(what, library, TOY)
    assert side.parameters == count_params(one_side.jax_model(TOY))
    assert side.measure() > 0 and side.measure() > 0


@pytest.mark.parity
@pytest.mark.parametrize("what", ["train", "decode8"])
def test_pytorch_has_as_many_parameters(what):
    side = one_side.prepare(what, "pytorch", TOY)
    assert side.parameters == count_params(one_side.jax_model(TOY))
    assert side.measure() > 0


@pytest.mark.parity
def test_pytorch_learns_as_gpt3jax_does():
    """The same windows again and again, from other weights: both losses fall to nearly nothing."""
    import numpy as np
    from pytorch_gpt import GPT, trainer

    network = GPT(1, 2, 8, 384, 16)
    step = trainer(network, 3e-2, (0.9, 0.95), 0.1)
    windows = one_side.random_windows(np.random.default_rng(0), TOY)
    losses = [float(step(windows)) for _ in range(60)]
    assert losses[0] == pytest.approx(np.log(384), abs=0.3) and losses[-1] < 0.3


def test_the_sizes_on_a_gpu_are_those_of_the_paper():
    options = SimpleNamespace(toy=False)
    for size, parameters in (("125m", 125_226_240), ("2b7", 2_651_553_280)):
        shape = speed.shape(size, options, dtype="bfloat16")
        assert count_params(one_side.jax_model(shape)) == parameters
        assert speed._mfu(size, options, 1e5) == pytest.approx(
            1e5 * (6 * parameters) / 989e12, rel=0.2
        )


def test_results_are_appended_and_become_a_table(tmp_path):
    options = SimpleNamespace(out=tmp_path / "out.jsonl", commit="abc", only=["125m"])
    record.Results(options, "train").add("125m", bfloat16=[1.0, 9.0, 2e6], ratio=None)
    record.Results(options, "bits").add("float8", first="x|y", replay={"good": True})
    lines = [json.loads(line) for line in options.out.read_text().splitlines()]
    assert [line["commit"] for line in lines] == ["abc", "abc"] and lines[0]["versions"]["jax"]
    text = table.markdown(record.Results(options).read())
    assert "**train**" in text and "| 125m | 9 |  |" in text and "good True" in text
    assert r"x\|y" in text, "a bar would begin another cell"
