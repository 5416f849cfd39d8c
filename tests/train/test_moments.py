"""AdamW with moments in bfloat16: by numpy, in bytes, after a resume, and refused changes."""

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest
from building import changed

from gpt3jax.config import AdamW, Experiment, Muon
from gpt3jax.errors import ConfigError
from gpt3jax.model.trainable import state_bytes
from gpt3jax.run_dir import Run
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.train.optimizers import scale_by_adam
from gpt3jax.train.state import abstract_state
from gpt3jax.train.train import train

HALF = AdamW(moments="bfloat16")


@pytest.fixture
def halved(experiment):
    experiment = dataclasses.replace(experiment, optimizer=HALF)
    return changed(experiment, train={"steps": 6, "save_every": 3})


def test_three_updates_are_those_of_numpy_with_moments_rounded_between_them():
    """In float32, as the updates are; the moments are then equal to the last bit or next to it."""
    rng = np.random.default_rng(0)
    optimizer, params = scale_by_adam(HALF), {"w": np.zeros((7, 5), np.float32)}
    state = optimizer.init(params)
    mu = nu = np.zeros((7, 5), np.float32)
    for step in range(1, 4):
        gradient = rng.normal(size=(7, 5)).astype(np.float32)
        mu = np.float32(HALF.b1) * mu + np.float32(1 - HALF.b1) * gradient
        nu = np.float32(HALF.b2) * nu + np.float32(1 - HALF.b2) * gradient**2
        expected = mu / (1 - HALF.b1**step) / (np.sqrt(nu / (1 - HALF.b2**step)) + HALF.epsilon)
        mu, nu = (each.astype(ml_dtypes.bfloat16).astype(np.float32) for each in (mu, nu))
        updates, state = optimizer.update({"w": gradient}, state, params)
        np.testing.assert_allclose(updates["w"], expected, rtol=1e-5)
        assert state.mu["w"].dtype == state.nu["w"].dtype == ml_dtypes.bfloat16
        for stored, moment in ((state.mu["w"], mu), (state.nu["w"], nu)):
            np.testing.assert_allclose(np.asarray(stored, np.float32), moment, rtol=2**-7)


@pytest.mark.parametrize("optimizer", [HALF, Muon(adamw=HALF)])
def test_plan_counts_the_bytes_of_the_state(halved, optimizer):
    halved = dataclasses.replace(halved, optimizer=optimizer)
    mesh = make_mesh(halved.mesh, jax.devices()[:1])
    large = [leaf for leaf in jax.tree.leaves(abstract_state(halved, mesh)) if leaf.size > 1]
    assert state_bytes(halved) == sum(leaf.size * leaf.dtype.itemsize for leaf in large)
    assert state_bytes(halved) < state_bytes(
        dataclasses.replace(halved, optimizer=AdamW() if optimizer is HALF else Muon())
    )


def test_a_stopped_and_resumed_run_has_the_bits_of_one_that_was_not(halved, tmp_path, one_device):
    train(halved, tmp_path / "whole")
    train(changed(halved, train={"steps": 3}), tmp_path / "parts")
    train(halved, tmp_path / "parts")
    whole, parts = (
        [(each["step"], each["loss"]) for each in Run(tmp_path / name).metrics() if "loss" in each]
        for name in ("whole", "parts")
    )
    assert whole == parts and len(whole) == 6
    read = Run(tmp_path / "whole").experiment()
    assert read == halved and Experiment.from_json(read.to_json()) == halved
    other = dataclasses.replace(halved, optimizer=AdamW())
    with pytest.raises(ConfigError, match=r"optimizer\.moments") as refused:
        train(other, tmp_path / "whole")
    assert "--allow-change" not in str(refused.value), "no checkpoint would fit"


def test_float32_moments_are_not_part_of_an_identity(experiment):
    """Runs from before there was the field resume."""
    assert "moments" not in experiment.identity()["optimizer"]
    muon = dataclasses.replace(experiment, optimizer=Muon())
    assert "moments" not in muon.identity()["optimizer"]["adamw"]
    halved = dataclasses.replace(experiment, optimizer=Muon(adamw=HALF))
    assert halved.identity()["optimizer"]["adamw"]["moments"] == "bfloat16"
