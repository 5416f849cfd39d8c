"""Muon by numpy, one matrix at a time; on meshes by its collectives; bytes by the arrays."""

import dataclasses
import json
import math
import re
from collections import Counter

import jax
import numpy as np
import pytest
from building import changed, randomised
from flax.traverse_util import flatten_dict

from gpt3jax.config import AdamW, Experiment, Mesh, Muon
from gpt3jax.errors import ConfigError
from gpt3jax.model.trainable import state_bytes
from gpt3jax.run_dir import Run
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.train.muon import COEFFICIENTS, orthogonalised, scale_by_muon
from gpt3jax.train.state import abstract_state, init_sharded_state
from gpt3jax.train.step import compile_train_step
from gpt3jax.train.train import train

MATRICES = {
    "qkv": lambda kernel: [kernel[:, :, part].reshape(len(kernel), -1) for part in range(3)],
    "out": lambda kernel: [kernel.reshape(-1, kernel.shape[-1])],
    "up": lambda kernel: [kernel],
    "down": lambda kernel: [kernel],
}
"""The matrices of a layer's kernel: q, k and v are three."""
WINDOWS = np.random.default_rng(0).integers(0, 300, (1, 8, 49)).astype(np.int32)


@pytest.fixture
def tuned(experiment):
    """Three layers, which no mesh of more than three devices divides."""
    experiment = dataclasses.replace(experiment, optimizer=Muon())
    return changed(experiment, model={"n_layers": 3}, train={"steps": 6, "save_every": 3})


def newton_schulz(matrix):
    """Jordan's iteration on one matrix, in float64."""
    x = np.asarray(matrix, np.float64)
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / np.linalg.norm(x)
    a, b, c = COEFFICIENTS
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def test_two_updates_are_those_of_numpy_for_each_matrix(model):
    draws = [
        {"layers": {name: {"kernel": kernels["kernel"]} for name, kernels in tree.items()}}
        for tree in (
            {name: randomised(model, seed)["layers"][name] for name in MATRICES} for seed in (1, 2)
        )
    ]
    optimizer = scale_by_muon(0.9, model)
    state = optimizer.init(draws[0])
    momentum = jax.tree.map(lambda leaf: 0 * np.asarray(leaf, np.float64), draws[0])
    for gradients in draws:
        update, state = optimizer.update(gradients, state)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + np.asarray(g), momentum, gradients)
        nesterov = jax.tree.map(lambda m, g: 0.9 * m + np.asarray(g), momentum, gradients)
        for name, split in MATRICES.items():
            found = np.asarray(update["layers"][name]["kernel"])
            for layer in range(model.n_layers):
                expected = split(nesterov["layers"][name]["kernel"][layer])
                for a, b in zip(split(found[layer]), expected, strict=True):
                    scaled = 0.2 * math.sqrt(max(b.shape)) * newton_schulz(b)
                    np.testing.assert_allclose(a, scaled, rtol=2e-3, atol=2e-5)
                    assert 0.13 < np.sqrt(np.mean(a**2)) < 0.25


@pytest.mark.parametrize("shape", [(24, 24), (8, 40), (40, 8)])
def test_singular_vectors_stay_and_singular_values_are_about_one(shape):
    x = np.random.default_rng(3).normal(size=(2, *shape)).astype(np.float32)
    for before, after in zip(x, orthogonalised(x), strict=True):
        u, values, v = np.linalg.svd(before, full_matrices=False)
        moved = u.T @ np.asarray(after) @ v.T
        large = values > 0.05 * np.linalg.norm(before)  # Five iterations do not reach tiny ones.
        assert ((np.diag(moved)[large] > 0.65) & (np.diag(moved)[large] < 1.25)).all()
        np.testing.assert_allclose(moved - np.diag(np.diag(moved)), 0, atol=1e-4)


def test_a_matrix_without_gradient_stays(model):
    zeros = np.zeros((2, 8, 8), np.float32)
    np.testing.assert_array_equal(orthogonalised(zeros), zeros)


def two_steps(experiment, mesh):
    """Collectives of the compiled step by kind, and the loss and parameters after two steps."""
    with jax.set_mesh(mesh):
        state = init_sharded_state(experiment, mesh)
        step, more = compile_train_step(experiment, mesh), (np.int32(1), np.float32(1e-2))
        text = step.lower(state, WINDOWS, *more).compile().as_text()
        for _ in range(2):
            state, metrics = step(state, WINDOWS, *more)
    kinds = re.findall(r"(all-gather|all-to-all|all-reduce|reduce-scatter)\(", text)
    return Counter(kinds), float(metrics["loss"]), state.params


@pytest.mark.parametrize(("sizes", "axes"), [((1, 8, 1), 1), ((2, 2, 2), 2), ((1, 1, 4), 1)])
@pytest.mark.in_ci("sizes1-2")
def test_on_a_mesh_matrices_are_exchanged_and_never_gathered(tuned, sizes, axes):
    """Beyond AdamW's collectives: there and back, for each of four kernels and each axis."""
    mesh = make_mesh(Mesh(*sizes), jax.devices()[: math.prod(sizes)])
    counts, loss, params = two_steps(tuned, mesh)
    plain, _, _ = two_steps(dataclasses.replace(tuned, optimizer=AdamW()), mesh)
    assert counts - plain == Counter({"all-to-all": 2 * 4 * axes})
    assert not plain - counts
    alone = make_mesh(Mesh(1, 1, 1), jax.devices()[:1])
    _, expected_loss, expected = two_steps(tuned, alone)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), params, expected
    )


@pytest.mark.parametrize("optimizer", [AdamW(), Muon()])
def test_plan_counts_the_bytes_of_the_state(tuned, optimizer):
    tuned = dataclasses.replace(tuned, optimizer=optimizer)
    mesh = make_mesh(Mesh(data=1), jax.devices()[:1])
    leaves = jax.tree.leaves(abstract_state(tuned, mesh))
    large = [leaf for leaf in leaves if leaf.size > 1]  # Without the count of steps.
    assert state_bytes(tuned) == sum(leaf.size * leaf.dtype.itemsize for leaf in large)


def test_a_stopped_and_resumed_run_has_the_bits_of_one_that_was_not(tuned, tmp_path, one_device):
    train(tuned, tmp_path / "whole")
    train(changed(tuned, train={"steps": 3}), tmp_path / "parts")
    train(tuned, tmp_path / "parts")
    whole, parts = (
        [(each["step"], each["loss"], each["grad_norm"]) for each in Run(tmp_path / name).metrics()
         if "loss" in each]
        for name in ("whole", "parts")
    )  # fmt: skip
    assert whole == parts and len(whole) == 6
    assert whole[-1][1] < whole[0][1]
    read = Run(tmp_path / "whole").experiment()
    assert read == tuned and Experiment.from_json(read.to_json()) == tuned


def test_only_the_chosen_layers_change(tuned):
    chosen = changed(tuned, train={"only": ("layers[1:2]/up", "layers/out/kernel")})
    mesh = make_mesh(Mesh(data=1), jax.devices()[:1])
    before = flatten_dict(init_sharded_state(chosen, mesh).params, sep="/")
    before = jax.tree.map(np.asarray, before)
    _, _, params = two_steps(chosen, mesh)
    for path, leaf in flatten_dict(params, sep="/").items():
        moved = (np.asarray(leaf) != before[path]).reshape(len(leaf), -1).any(1).tolist()
        expected = {"layers/up/kernel": [0, 1, 0], "layers/up/bias": [0, 1, 0],
                    "layers/out/kernel": [1, 1, 1]}  # fmt: skip
        assert moved == expected.get(path, [0] * len(leaf)), path


@pytest.mark.parametrize("name", [[], {}, 3, None, "lion"])
def test_a_stored_optimizer_of_an_unknown_name_is_refused_in_words(tuned, name):
    record = json.loads(tuned.to_json())
    record["optimizer"]["name"] = name
    with pytest.raises(ConfigError, match=r"optimizer\.name is not known"):
        Experiment.from_json(json.dumps(record))


@pytest.mark.parametrize("fields", [{"lora_rank": 1}, {"mup_base": (32, 8)}])
def test_lora_and_mup_are_refused_in_words(tuned, fields):
    with pytest.raises(ConfigError, match="optimizer is Muon, and the model has muP or LoRA"):
        changed(tuned, model=fields)


def test_an_invalid_value_is_refused_in_words():
    with pytest.raises(ConfigError, match=r"--optimizer\.momentum is 1"):
        Muon(momentum=1.0)
