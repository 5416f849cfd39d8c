"""Packed matrices: near what they stand for, the same model wherever used, and read in place."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from building import logits_of

from gpt3jax.decoding import decode
from gpt3jax.decoding.decode import Sampling
from gpt3jax.decoding.generator import Generator
from gpt3jax.model.layers import unstack
from gpt3jax.model.quantized import FEW_ROWS, Quantized, quantize, quantize_and_restore

KINDS = ("bfloat16", "int8")
ALL = ("full", *KINDS)
TOKENS = np.random.default_rng(0).integers(0, 300, (2, 40)).astype(np.int32)


def listed(params, model):
    return {**params, "layers": unstack(params["layers"], model.n_layers)}


def test_full_is_what_it_was(params, model):
    """The same numbers, and on a CPU in rows of outputs."""
    whole = quantize(listed(params, model), "full")
    for layer in range(model.n_layers):
        for name, n_in in (("qkv", 1), ("out", 2), ("up", 1), ("down", 1)):
            kernel, rows = params["layers"][name]["kernel"][layer], whole["layers"][layer][name]
            width = math.prod(kernel.shape[:n_in])
            assert (rows["kernel"].values == kernel.reshape(width, -1).T).all()
            assert (rows["kernel"].scale == 1).all()
    assert quantize_and_restore(params, "full") is params


@pytest.mark.parametrize("weights", ALL)
def test_activations_have_the_dtype_of_the_model(params, model, weights):
    """The cache shows it; float32 scales once made all activations float32."""
    narrow = dataclasses.replace(model, dtype="bfloat16")
    ready = decode.decoding_params(params, narrow, weights)
    _, cache = jax.eval_shape(
        lambda params: decode.prefill(params, TOKENS, np.int32(40), narrow, 48), ready
    )
    assert {leaf.dtype for leaf in (*cache.keys, *cache.values)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("rows", [1, 3])
def test_a_product_on_a_gpu_is_that_of_the_restored_matrix(rows, monkeypatch):
    monkeypatch.setattr("gpt3jax.model.quantized.platform", lambda: "gpu")
    values = jax.random.randint(jax.random.key(0), (24, 16), -127, 128, jnp.int8)
    packed = Quantized(values, jnp.linspace(0.5, 2.0, 24), (16, 24))
    x_MI = jax.random.normal(jax.random.key(1), (rows, 16))
    expected = np.float64(x_MI) @ (np.float64(values) * np.float64(packed.scale)[:, None]).T
    np.testing.assert_allclose(packed.dot(x_MI), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("weights", "relative"), [("bfloat16", 2**-8), ("int8", 1 / 254)])
def test_what_is_lost_is_bounded(params, model, weights, relative):
    found = quantize_and_restore(params, weights)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, before), after in zip(leaves, jax.tree.leaves(found), strict=True):
        name = path[-1].key
        assert after.shape == before.shape and after.dtype == before.dtype
        if name not in ("kernel", "token_embedding"):
            assert (before == after).all(), path
            continue
        largest = jnp.abs(before).max()
        off = jnp.abs(before - after).max()
        assert 0 < off <= 1.001 * relative * largest, path


def test_a_row_of_zeros_stays_one(model, params):
    params = params | {"token_embedding": params["token_embedding"].at[7].set(0.0)}
    table = quantize(listed(params, model), "int8")["token_embedding"]
    assert not table.rows(jnp.array([7])).any() and jnp.isfinite(table.scale).all()


@pytest.mark.parametrize("weights", ALL)
@pytest.mark.in_ci("int8")
def test_the_packed_model_is_the_rounded_one(params, model, weights):
    """Reading, prefill and each step; the output projection contracts two axes."""
    expected = logits_of(quantize_and_restore(params, weights), TOKENS, model)
    small = decode.decoding_params(params, model, weights)
    found = logits_of(small, TOKENS, model)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    exact = logits_of(params, TOKENS, model)
    assert (np.abs(found - exact).max() > 1e-4) == (weights != "full")
    logits, cache = decode.prefill(small, TOKENS[:, :20], jnp.int32(20), model)
    for place in range(20, 24):
        np.testing.assert_allclose(logits, expected[:, place - 1, : model.vocabulary], atol=2e-5)
        logits, cache = decode.decode(small, cache, TOKENS[:, place], model)


@pytest.mark.parametrize(("weights", "share"), [("bfloat16", 0.5), ("int8", 0.25)])
def test_they_are_smaller(model, params, weights, share):
    def size(tree):
        return sum(leaf.values.nbytes if isinstance(leaf, Quantized) else 0 for leaf in tree)

    def is_packed(leaf):
        return isinstance(leaf, Quantized)

    small = jax.tree.leaves(decode.decoding_params(params, model, weights), is_leaf=is_packed)
    whole = {
        path[-1].key: 0 for path, _ in jax.tree_util.tree_leaves_with_path(params)
    }  # What is packed: kernels and the table.
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        whole[path[-1].key] += leaf.nbytes
    assert size(small) == share * (whole["kernel"] + whole["token_embedding"])


@pytest.mark.parametrize("weights", ALL)
@pytest.mark.in_ci("int8")
def test_a_step_reads_each_matrix_once_and_computes_no_norm_anew(params, model, weights):
    """Else it would be slower: seen with a factor that XLA could drop, and with norms and GELUs
    that it draws into the loop over a product's outputs."""
    model = dataclasses.replace(model, dtype="float32")
    small = jax.jit(decode.decoding_params, static_argnums=(1, 2))(params, model, weights)
    _, cache = decode.prefill(small, TOKENS[:1], jnp.int32(40), model)
    step = jax.jit(decode.decode, static_argnames="model", compiler_options=decode.CPU_OPTIONS)
    text = step.lower(small, cache, TOKENS[0, :1], model).compile().as_text()
    entry = text[text.index("ENTRY") :]
    D, F, V = model.d_model, model.d_ff, small["token_embedding"].shape[0]
    for rows, columns in ((3 * D, D), (D, D), (F, D), (D, F), (V, D)):
        for shape in ((rows, columns), (columns, rows)):
            copies = re.findall(rf"= f32\[{shape[0]},{shape[1]}\]\S* (\S+)\(", entry)
            assert not {*copies} - {"parameter"}, (shape, copies)
    loops = [part for part in text.split("\n\n") if " dot(" in part and "ENTRY" not in part]
    of_matrices = [part for part in loops if f",{D}]" in part or f",{F}]" in part]
    assert weights == "full" or len(of_matrices) == 4 * model.n_layers + 1
    for part in of_matrices:
        assert " subtract(" not in part and " tanh(" not in part, part


def test_a_generator_writes_with_them(params, model):
    class Tokens:
        vocabulary, end_of_text = model.vocabulary, 0

    def written(params, weights):
        generator = Generator(params, model, Tokens(), weights)
        drawn = generator.tokens([5, 6, 7], new_tokens=12, sampling=Sampling(0.0))
        return [int(token) for (token,) in drawn], generator

    for weights in KINDS:
        tokens, generator = written(params, weights)
        assert tokens == written(quantize_and_restore(params, weights), "full")[0]
        assert isinstance(generator.params["token_embedding"], Quantized)


def test_several_rows_multiply_in_the_order_that_is_read_fast(params, model):
    """The matrix first: the other way round takes twice as long on CPUs, and XLA prefers it."""
    model = dataclasses.replace(model, dtype="float32")
    ready = jax.jit(decode.decoding_params, static_argnums=(1, 2))(params, model, "full")
    _, cache = decode.prefill(ready, np.tile(TOKENS[:1], (5, 1)), jnp.int32(40), model)
    step = jax.jit(decode.decode, static_argnames="model", compiler_options=decode.CPU_OPTIONS)
    text = step.lower(ready, cache, np.zeros(5, np.int32), model).compile().as_text()
    results = re.findall(r"= f32\[(\d+),(\d+)\]\S* dot\(", text)
    assert len(results) == 4 * model.n_layers + 1
    assert {columns for _, columns in results} == {"5"}


@pytest.mark.parametrize(("rows", "result"), [(8, "40,8"), (FEW_ROWS + 1, f"{FEW_ROWS + 1},40")])
def test_many_rows_multiply_the_other_way_round(rows, result):
    """A long prompt reads matrices from a cache; then their order is the slower one."""
    matrix = Quantized(jnp.ones((40, 32)), jnp.ones(40), (32, 40))
    run = jax.jit(lambda matrix, x: matrix.dot(x))
    text = run.lower(matrix, jnp.ones((rows, 32))).compile().as_text()
    assert re.findall(r"= f32\[([\d,]+)\]\S* dot\(", text) == [result]
