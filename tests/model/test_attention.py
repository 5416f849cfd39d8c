"""Blocked attention against twenty lines of reference."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt3jax.model import attention


def reference(q_BTHK, k_BTHK, v_BTHK, band):
    """One query at a time, in numpy: look at the keys i-band+1 .. i."""
    q, k, v = (np.asarray(x, np.float64) for x in (q_BTHK, k_BTHK, v_BTHK))
    B, T, H, K = q.shape
    out = np.zeros_like(q)
    for b in range(B):
        for h in range(H):
            for i in range(T):
                first = 0 if band is None else max(0, i - band + 1)
                scores = k[b, first : i + 1, h] @ q[b, i, h] / np.sqrt(K)
                weights = np.exp(scores - scores.max())
                out[b, i, h] = weights / weights.sum() @ v[b, first : i + 1, h]
    return out


def qkv(T, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    return [jax.random.normal(key, (2, T, 3, 8)) for key in keys]


@pytest.mark.parametrize("T", [1, 7, 128, 200, 300])
@pytest.mark.parametrize("band", [None, 1, 5, 64, 1000])
@pytest.mark.in_ci("64-*", "None-200")
def test_blocks_equal_the_reference(T, band):
    q, k, v = qkv(T)
    found = attention.causal_attention(q, k, v, band)
    np.testing.assert_allclose(found, reference(q, k, v, band), atol=2e-6)


@pytest.mark.parametrize("band", [None, 5])
@pytest.mark.parametrize("new", [1, 3])
def test_attention_over_a_cache_equals_attention_over_the_window(band, new):
    T, slots = 20, 32
    q, k, v = qkv(T)
    past = T - new
    filled = jnp.pad(k[:, :past], ((0, 0), (0, slots - past), (0, 0), (0, 0)), constant_values=9.0)
    values = jnp.pad(v[:, :past], ((0, 0), (0, slots - past), (0, 0), (0, 0)), constant_values=9.0)
    found = attention.cached_attention(
        q[:, past:], k[:, past:], v[:, past:],
        band, (filled.transpose(0, 2, 1, 3), values.transpose(0, 2, 1, 3), jnp.int32(past), None),
    )  # fmt: skip
    np.testing.assert_allclose(found, reference(q, k, v, band)[:, past:], atol=2e-6)


def test_a_band_shows_itself_and_the_keys_just_before():
    rows = attention.causal_mask(jnp.arange(5), jnp.arange(5), 3).astype(int).tolist()
    assert rows == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]  # fmt: skip  # noqa: E501


def test_a_banded_layer_computes_less_than_a_dense_one():
    """FLOPs of the compiled products, so that masking after computing everything fails."""

    def flops(band):
        shapes = [jax.ShapeDtypeStruct((1, 2048, 1, 64), jnp.float32)] * 3
        compiled = (
            jax.jit(lambda q, k, v: attention.causal_attention(q, k, v, band))
            .lower(*shapes)
            .compile()
        )
        return compiled.cost_analysis()["flops"]

    assert flops(256) < 0.5 * flops(None)
    assert flops(None) < 0.65 * 4 * 2048 * 2048 * 64 * 1.3


@pytest.mark.parametrize("band", [None, 100])
def test_the_tpu_kernel_is_the_reference_when_interpreted(band):
    q, k, v = qkv(256)
    kernel = partial(attention.splash, band=band, interpret=True)
    np.testing.assert_allclose(kernel(q, k, v), reference(q, k, v, band), atol=1e-5)

    def gradients(attend):
        def weighed(q, k, v):
            return (attend(q, k, v) * jnp.cos(jnp.arange(8.0))).sum()

        return jax.grad(weighed, argnums=(0, 1, 2))(q, k, v)

    plain = partial(attention.blocked_attention, band=band)
    for a, b in zip(gradients(plain), gradients(kernel), strict=True):
        np.testing.assert_allclose(b, a, atol=2e-5)
