"""Products in float8: how near they are, what they cost a run, and that only training has them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from building import changed, randomised

from gpt3jax.config import Mesh
from gpt3jax.decoding.decode import decoding_params, prefill
from gpt3jax.errors import ConfigError
from gpt3jax.model.float8 import BACKWARD, FORWARD, matmul, to_float8
from gpt3jax.model.gpt3 import forward
from gpt3jax.model.lora import merged_model
from gpt3jax.sharding.legal_meshes import check_fits, meshes
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.train.state import init_sharded_state
from gpt3jax.train.step import compile_train_step

TOKENS = np.random.default_rng(0).integers(0, 300, (2, 40)).astype(np.int32)


@pytest.fixture
def arrays():
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((24, 64), (64, 40), (24, 40))
    return [3.7 * jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize("dtype", [FORWARD, BACKWARD])
@pytest.mark.parametrize("factor", [1.0, 1e-20, 3e20])
def test_the_nearest_numbers_of_the_format_whatever_the_size(arrays, dtype, factor):
    """Half a unit in the last place, of the smallest normal numbers for those below them."""
    x, format = arrays[0] * factor, jnp.finfo(dtype)
    found = to_float8(x, dtype)
    assert np.log2(found.scale) % 1 == 0, "scaling rounds nothing"
    largest = jnp.abs(found.values.astype(jnp.float32)).max()
    assert float(format.max) / 2 <= largest <= float(format.max)
    back = found.values.astype(jnp.float32) * found.scale
    unit = jnp.maximum(jnp.abs(x), float(format.smallest_normal) * found.scale)
    assert (jnp.abs(back - x) <= unit * 2.0 ** -(format.nmant + 1)).all()


def test_nothing_and_what_is_not_finite_stay_so():
    assert (to_float8(jnp.zeros((2, 2)), FORWARD).values == 0).all()
    for bad in (jnp.inf, jnp.nan):
        x = jnp.ones((2, 2)).at[0, 0].set(bad)
        assert not jnp.isfinite(matmul(x, jnp.ones((2, 2)))).all()


def test_products_and_gradients_are_those_of_the_rounded_numbers(arrays):
    x, w, dy = arrays

    def back(value, dtype):
        eight = to_float8(value, dtype)
        return eight.values.astype(jnp.float32) * eight.scale

    y, pull = jax.vjp(matmul, x, w)
    dx, dw = pull(dy)
    x8, w8, dy8 = back(x, FORWARD), back(w, FORWARD), back(dy, BACKWARD)
    for found, expected in ((y, x8 @ w8), (dx, dy8 @ w8.T), (dw, x8.T @ dy8)):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    for found, exact in ((y, x @ w), (dx, dy @ w.T), (dw, x.T @ dy)):
        off = jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact)
        assert 0.01 < off < 0.1, "rounded, and near"


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.in_ci("none-False", "full-True")
def test_a_model_computes_nearly_the_same_and_every_kernel_takes_part(params, model, scan, remat):
    """And the same whether layers are looped over or computed again."""
    eight = dataclasses.replace(model, dtype="float8", scan_layers=scan, remat=remat)
    plain = dataclasses.replace(model, dtype="float8")
    run = jax.jit(forward, static_argnames="model")
    found, exact = (run(params, TOKENS, each).logits[..., :300] for each in (eight, model))
    np.testing.assert_allclose(found, run(params, TOKENS, plain).logits[..., :300], atol=1e-5)
    off = jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact)
    assert 0.005 < off < 0.2
    text = jax.jit(forward, static_argnames="model").lower(params, TOKENS, plain).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    # qkv, out, up and down of each layer; attention and the head are as ever.
    assert sum("f8E4M3FN" in line for line in products) == 4 * model.n_layers


@pytest.mark.long
def test_training_goes_on_as_it_does_without(experiment):
    """The demo in small: losses of 12 steps within a hundredth; on two devices of fsdp, too."""

    def losses(dtype, mesh):
        trained = changed(experiment, model={"dtype": dtype})
        mesh = make_mesh(mesh, jax.devices()[: mesh.data * mesh.fsdp])
        draw, found = np.random.default_rng(0), []
        with jax.set_mesh(mesh):
            state, step = init_sharded_state(trained, mesh), compile_train_step(trained, mesh)
            shape = (1, trained.batch_sequences, trained.model.context + 1)
            windows = jnp.asarray(draw.integers(0, 300, shape, dtype=np.int32))
            for _ in range(12):
                state, metrics = step(state, windows, jnp.int32(1), jnp.float32(3e-3))
                found.append(float(metrics["loss"]))
        return np.array(found)

    exact, eight = losses("auto", Mesh(1)), losses("float8", Mesh(1))
    assert exact[-1] < exact[0] - 0.5
    np.testing.assert_allclose(eight, exact, rtol=0.01)
    assert (eight != exact).all()
    np.testing.assert_allclose(losses("float8", Mesh(1, 2)), eight, rtol=0.005)


def test_what_was_learned_is_read_without_float8(model):
    params, eight = randomised(model), dataclasses.replace(model, dtype="float8")
    read = jax.jit(prefill, static_argnames="model")
    found = [
        read(decoding_params(params, each), TOKENS, jnp.int32(40), merged_model(each))[0]
        for each in (eight, model)
    ]
    np.testing.assert_array_equal(*found)


def test_the_ring_of_the_tensor_axis_is_refused(experiment):
    eight = changed(experiment, model={"dtype": "float8"})
    assert {mesh[2] for mesh in meshes(eight, 8)} == {1}
    with pytest.raises(ConfigError, match="--mesh.tensor is 2, but --model.dtype is float8"):
        check_fits(eight, 1, 1, 2)
