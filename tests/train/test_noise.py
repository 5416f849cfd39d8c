"""The gradient noise scale: right on every mesh, and absent where there is no accumulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from building import changed, loss_of
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding

from gpt3jax.config import Mesh
from gpt3jax.model.param_specs import param_specs
from gpt3jax.run_dir import Run
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.sharding.rules import partition_spec, partition_specs
from gpt3jax.train import step as step_module
from gpt3jax.train.monitor.noise_scale import NoiseScale, estimate
from gpt3jax.train.state import init_sharded_state, init_state
from gpt3jax.train.step import compile_train_step
from gpt3jax.train.train import train

ALONE, SPREAD = Mesh(data=1), Mesh(data=2, fsdp=2, tensor=2)


def one_step(experiment, mesh, counts=(), lower_only=False):
    """A step on random windows: its lowered text, the windows, its metrics, the state after it.

    Of several counts of microbatches, a step each, and what the last one gives.
    """
    shape = (experiment.batch_sequences // experiment.microbatch, experiment.microbatch)
    model = experiment.model
    windows = np.random.default_rng(0).integers(0, model.vocabulary, (*shape, model.context + 1))
    windows = windows.astype(np.int32)
    devices = mesh.data * mesh.fsdp * mesh.tensor
    made = make_mesh(mesh, jax.devices()[:devices])
    with jax.set_mesh(made):
        placed = jax.device_put(windows, NamedSharding(made, partition_spec((None, "batch", None))))
        step = compile_train_step(experiment, made)
        state = init_sharded_state(experiment, made)
        if lower_only:
            return step.lower(state, placed, np.int32(1), np.float32(1e-2)).as_text()
        found = []
        for count in counts or (shape[0],):
            state, metrics = step(state, placed, np.int32(count), np.float32(1e-2))
            found.append(jax.device_get(metrics))
    return windows, found, jax.device_get(state)


@pytest.fixture
def small(experiment):
    return changed(experiment, model={"n_layers": 1}, train={"noise_scale": True})


@pytest.mark.parametrize("mesh", [ALONE, SPREAD], ids=str)
def test_it_is_what_the_gradients_of_each_share_of_the_batch_say(small, mesh):
    """Against gradients that are computed one by one, for each parameter as the mesh shares it."""
    experiment = changed(small, train={"microbatch": 4})
    windows_MBT1, (metrics,), _ = one_step(experiment, mesh)
    params = init_state(experiment).params
    gradient = jax.jit(jax.grad(lambda p, w: loss_of(p, w, experiment.model)))

    def of(windows_BT1):
        return flatten_dict(gradient(params, windows_BT1), sep="/")

    whole = of(windows_MBT1.reshape(8, -1))
    by_split = {
        shares: [of(rows) for batch in windows_MBT1 for rows in np.split(batch, shares)]
        for shares in (1, mesh.data, mesh.data * mesh.fsdp)
    }
    square = variance = 0.0
    big = 8 * experiment.model.context
    for path, part in flatten_dict(partition_specs(param_specs(experiment.model)), sep="/").items():
        shares = mesh.data * (1 if "fsdp" in part else mesh.fsdp)
        b = 4 * experiment.model.context / shares
        of_small = np.mean([np.square(each[path]).sum() for each in by_split[shares]])
        of_big = float(np.square(whole[path]).sum())
        square += (big * of_big - b * of_small) / (big - b)
        variance += (of_small - of_big) / (1 / b - 1 / big)
    assert metrics["grad_square"] == pytest.approx(square, rel=1e-3)
    assert metrics["grad_variance"] == pytest.approx(variance, rel=1e-3)
    assert metrics["grad_norm"] ** 2 > metrics["grad_square"] > 0


def test_a_planted_signal_and_noise_are_found():
    """Microbatches of 64 tokens: gradients around G, of one token's variance over 64."""
    draw, true, tokens, count = np.random.default_rng(0), np.arange(4.0), 64, 8
    squares, variances = [], []
    for _ in range(2000):
        each = true + draw.normal(size=(count, 4)) * np.array([1, 2, 3, 4]) / tokens**0.5
        small = {1: jnp.sum(jnp.asarray(each) ** 2)}
        mean = {"w": jnp.asarray(each.mean(0))}
        found = estimate(small, mean, {"w": partition_spec(("embed",))}, tokens, count)
        squares.append(found["grad_square"])
        variances.append(found["grad_variance"])
    assert np.mean(squares) == pytest.approx(14, rel=0.02)
    assert np.mean(variances) == pytest.approx(1 + 4 + 9 + 16, rel=0.03)


def test_without_accumulation_it_is_not_there_and_the_step_is_what_it_was(small, monkeypatch):
    assert set(one_step(small, ALONE)[1][0]) == {"loss", "grad_norm"}
    text = one_step(small, SPREAD, lower_only=True)

    def must_not_be_called(*_):
        raise AssertionError

    monkeypatch.setattr(step_module, "small_squares", must_not_be_called)
    monkeypatch.setattr(step_module, "estimate", must_not_be_called)
    step_module._jitted.cache_clear()
    assert one_step(small, SPREAD, lower_only=True) == text


def test_with_accumulation_the_losses_and_the_state_keep_their_bits(small):
    """And a batch of one microbatch, as where the ramp begins, says nothing of the noise."""
    experiment = changed(small, train={"microbatch": 4})
    _, found, state = one_step(experiment, ALONE, (2, 2, 1))
    assert [bool(np.isfinite(each["grad_square"])) for each in found] == [True, True, False]
    _, without, state_without = one_step(
        changed(experiment, train={"noise_scale": False}), ALONE, (2, 2, 1)
    )
    for a, b in zip(found, without, strict=True):
        assert set(b) == {"loss", "grad_norm"} and all(a[name] == b[name] for name in b)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(state_without), strict=True):
        np.testing.assert_array_equal(a, b)


def test_averages_are_of_the_regular_records_and_are_divided_last():
    def record(step, square, variance, is_complete=True):
        sides = {"grad_square": square, "grad_variance": variance}
        return averages.add(sides, step, is_complete).get("noise_scale")

    averages = NoiseScale(log_every=10)
    assert record(10, 2.0, 60.0) == pytest.approx(30)
    assert averages.add({"loss": 1.0}, 20, True) == {"loss": 1.0}
    assert record(13, 9.0, 9.0) is None
    assert averages.add({"grad_square": 9.0, "grad_variance": 9.0}, 20, False) == {}
    # Not the mean of the ratios 30 and 10.
    expected = (0.95 * 60 + 40) / (0.95 * 2 + 4)
    assert record(20, 4.0, 40.0) == pytest.approx(expected)
    averages = NoiseScale(10)
    assert record(10, -1.0, 5.0) is None


@pytest.mark.long
def test_a_resumed_run_logs_the_noise_scale_of_one_that_was_not(small, tmp_path, one_device):
    experiment = changed(
        small, train={"microbatch": 2, "steps": 8, "log_every": 2, "save_every": 3}
    )
    train(experiment, tmp_path / "whole")
    train(changed(experiment, train={"steps": 5}), tmp_path / "halves")
    train(experiment, tmp_path / "halves")
    whole, halves = (Run(tmp_path / name).metrics() for name in ("whole", "halves"))
    scales = [{r["step"]: r.get("noise_scale") for r in run} for run in (whole, halves)]
    assert {s: scale for s, scale in scales[1].items() if s != 5} == scales[0]
    assert scales[0][8] > 0
    assert all("grad_square" in r for r in whole if "loss" in r)
