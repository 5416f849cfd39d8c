"""Low-rank adaptation: nothing at first, the same merged, and on any mesh."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from building import loss_of, randomised

from gpt3jax.config import Model
from gpt3jax.decoding import decode
from gpt3jax.errors import ConfigError
from gpt3jax.model.gpt3 import forward
from gpt3jax.model.init import init_params
from gpt3jax.model.lora import merge_lora
from gpt3jax.model.param_specs import count_params
from gpt3jax.serde import build

ALL = ("qkv", "out", "up", "down")


@pytest.fixture
def small(model):
    return dataclasses.replace(
        model, n_layers=2, d_model=24, n_heads=2, d_head=12, context=16, band=4, lora_rank=3,
        lora_matrices=ALL, lora_alpha=6.0,
    )  # fmt: skip


def logits_of(params, model, tokens):
    return np.asarray(jax.jit(partial(forward, model=model))(params, tokens).logits)


@pytest.fixture
def tokens(small):
    return jax.random.randint(jax.random.key(3), (2, small.context), 0, small.vocabulary)


def test_factors_multiply_to_what_is_added_to_each_kernel(small):
    params = randomised(small)
    found, plain = merge_lora(params, small)
    assert plain == dataclasses.replace(small, lora_rank=0) and "lora" not in found["layers"]
    for name, spec in {
        "qkv": "ndr,nrhzk->ndhzk", "out": "nhkr,nrd->nhkd", "up": "ndr,nrf->ndf",
        "down": "nfr,nrd->nfd",
    }.items():  # fmt: skip
        factors, kernel = params["layers"]["lora"][name], params["layers"][name]["kernel"]
        change = 6.0 / 3 * np.einsum(spec, factors["a"], factors["b"])
        assert np.abs(change).max() > 0.01
        np.testing.assert_allclose(
            found["layers"][name]["kernel"], kernel + change, rtol=1e-5, atol=1e-6
        )
    others = {k: v for k, v in params.items() if k != "layers"}
    assert all(found[name] is others[name] for name in others)


@pytest.mark.parametrize("how", [{}, {"scan_layers": True}, {"remat": "full"}])
def test_merged_parameters_give_the_logits_of_the_factors(small, tokens, how):
    small = dataclasses.replace(small, **how)
    params = randomised(small)
    whole, plain = merge_lora(params, small)
    expected = logits_of(params, small, tokens)
    np.testing.assert_allclose(logits_of(whole, plain, tokens), expected, atol=2e-5)
    without = {**params, "layers": {k: v for k, v in params["layers"].items() if k != "lora"}}
    assert np.abs(logits_of(without, plain, tokens) - expected).max() > 0.1


def test_at_first_nothing_is_changed_bit_for_bit(small, tokens):
    params, plain = init_params(jax.random.key(0), small), dataclasses.replace(small, lora_rank=0)
    base = init_params(jax.random.key(0), plain)
    for name in base:
        for a, b in zip(*map(jax.tree.leaves, (base[name], merge_lora(params, small)[0][name])),
                        strict=True):  # fmt: skip
            np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(
        logits_of(params, small, tokens), logits_of(base, plain, tokens), atol=1e-6
    )


@pytest.mark.long
def test_cached_decoding_has_the_changes_too(small, tokens):
    params = randomised(small)
    ready, plain = decode.decoding_params(params, small), dataclasses.replace(small, lora_rank=0)
    logits, cache = decode.prefill(ready, tokens[:, :8], jnp.int32(8), plain)
    expected = logits_of(params, small, tokens)[..., : small.vocabulary]
    np.testing.assert_allclose(logits, expected[:, 7], atol=2e-5)
    logits, _ = decode.decode(ready, cache, tokens[:, 8], plain)
    np.testing.assert_allclose(logits, expected[:, 8], atol=2e-5)


def test_gradients_of_the_factors_are_the_chain_rule_through_the_merged_kernel(small, tokens):
    windows = jnp.concatenate([tokens, tokens[:, :1]], axis=1)
    params = randomised(small)
    gradient = jax.jit(jax.grad(partial(loss_of, model=small)))(params, windows)
    whole, plain = merge_lora(params, small)
    of_whole = jax.jit(jax.grad(partial(loss_of, model=plain)))(whole, windows)
    for name, spec_a, spec_b in [
        ("up", "ndf,nrf->ndr", "ndr,ndf->nrf"), ("out", "nhkd,nrd->nhkr", "nhkr,nhkd->nrd"),
    ]:  # fmt: skip
        kernel, factors = of_whole["layers"][name]["kernel"], params["layers"]["lora"][name]
        found = gradient["layers"]["lora"][name]
        np.testing.assert_allclose(
            found["a"], 2.0 * np.einsum(spec_a, kernel, factors["b"]), atol=1e-6
        )
        np.testing.assert_allclose(
            found["b"], 2.0 * np.einsum(spec_b, factors["a"], kernel), atol=1e-6
        )


def test_the_count_is_that_of_the_factors():
    model = Model(n_layers=2, d_model=8, n_heads=2, d_head=4, vocabulary=16, context=4)
    tuned = dataclasses.replace(model, lora_rank=2)
    # qkv: 8 x 2 and 2 x 24; out: 8 x 2 and 2 x 8; two layers.
    assert count_params(tuned) - count_params(model) == 2 * (16 + 48 + 16 + 16)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"lora_rank": -1}, "--model.lora-rank is -1: it must be at least 0"),
        ({"lora_rank": 9}, "--model.lora-rank is 9, above d_model 8"),
        ({"lora_rank": 2, "lora_matrices": ()}, "--model.lora-matrices is .* at least one"),
        ({"lora_matrices": ("up", "up")}, "--model.lora-matrices is .* without repeats"),
        ({"lora_matrices": ("k",)}, "--model.lora-matrices is 'k': it must be one of qkv, out"),
        ({"lora_alpha": float("nan")}, "--model.lora-alpha is nan"),
    ],
)
def test_what_cannot_be_is_refused(fields, said):
    shape = {"n_layers": 2, "d_model": 8, "n_heads": 2, "d_head": 4}
    with pytest.raises(ConfigError, match=said):
        Model(**shape, **fields)
    known = Model(**shape, lora_matrices=("up",))
    assert build(Model, json.loads(json.dumps(dataclasses.asdict(known)))) == known
