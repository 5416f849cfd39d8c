"""What is kept of a layer for its backward pass, and what is computed again: by the program."""

import dataclasses
from collections import Counter
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.extend.core import jaxprs_in_params

from gpt3jax.decoding import batched, decode
from gpt3jax.inspect.capture import capture
from gpt3jax.model import attention, gpt3, logprobs

TOKENS = np.zeros((1, 48), np.int32)


def traced(function, *arguments):
    """By name: at how many places primitives are computed."""

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            yield equation.primitive.name
            for inner in jaxprs_in_params(equation.params):
                yield from walk(inner)

    return Counter(walk(jax.make_jaxpr(function)(*arguments).jaxpr))


def primitives(params, model):
    """Of a gradient."""
    return traced(jax.grad(lambda p: gpt3.forward(p, TOKENS, model).logits.sum()), params)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(("remat", "times"), [("none", 1), ("dots", 1), ("mlp", 1), ("full", 2)])
def test_cudnns_attention_is_computed_again_only_where_all_is(params, model, remat, times, scan):
    """Its softmax's sums are kept with its output, or the kernel would run twice. No GPU is here:
    what is traced is JAX's own call of the kernel, whose version it cannot look up."""
    model = dataclasses.replace(model, dtype="bfloat16", remat=remat, scan_layers=scan)
    with (
        mock.patch.object(gpt3, "platform", lambda: "gpu"),
        mock.patch.object(attention, "platform", lambda: "gpu"),
        mock.patch.object(attention, "is_per_device", lambda: True),
        mock.patch.object(fused_attention_stablehlo, "check_cudnn_version", lambda: 91200),
    ):
        found = primitives(params, model)[attention.CUDNN]
    places = 2 if scan else model.n_layers  # In a loop, one for each kind of layer.
    assert found == times * places


def test_an_accelerator_that_is_alone_does_not_keep_everything(params, model):
    """Left to itself, XLA kept 103 GiB where `none` says 42 (GPT-3 Small, 64 windows, H100)."""
    model = dataclasses.replace(model, dtype="float32")
    here = primitives(params, model)
    with mock.patch.object(gpt3, "platform", lambda: "tpu"):
        there = primitives(params, model)
    assert here["remat2"] == 0 and there["remat2"] == model.n_layers


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.in_ci("full-*")
def test_inference_has_no_checkpoint_and_chooses_attention_as_it_is_traced(
    params, model, remat, scan, platform
):
    model = dataclasses.replace(model, dtype="float32", remat=remat, scan_layers=scan)
    ready = decode.decoding_params(params, model)
    texts, one = jnp.zeros((2, 8), jnp.int32), jnp.zeros(2, jnp.int32)
    _, cache = decode.prefill(ready, texts, jnp.int32(8), model)
    with mock.patch.object(gpt3, "platform", lambda: platform):
        programs = {
            "prefill": traced(lambda: decode.prefill(ready, texts, jnp.int32(8), model)),
            "decode": traced(lambda: decode.decode(ready, cache, one, model)),
            "cached": traced(
                lambda: gpt3.forward(params, texts, model, cache=cache, positions_BT=texts).logits
            ),
            "of unlike lengths": traced(lambda: decode.prefill(ready, texts, one + 4, model, 16)),
            "several texts": traced(lambda: batched.score(ready, texts[:1], model)),
        }
        # Of stacked layers in a loop, the kind is known only as it runs.
        looped = {
            "scores": traced(lambda: logprobs.token_logprobs(params, texts, model)),
            "captured": traced(lambda: capture(params, texts, model)),
        }
    for name, found in (programs | looped).items():
        assert found["dot_general"] and not found["remat2"], name
        assert found["cond"] == (1 if scan and name in looped else 0), name


def test_what_is_computed_again_is_the_same(params, model):
    def gradients(remat):
        changed = dataclasses.replace(model, remat=remat, dtype="float32")
        return jax.grad(lambda p: jnp.square(gpt3.forward(p, TOKENS, changed).logits).sum())(params)

    whole = gradients("none")
    with mock.patch.object(gpt3, "platform", lambda: "gpu"):
        # float32 has no cuDNN kernel: blocks of products, as on a CPU.
        kept = gradients("none")
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(kept), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_auto_unrolls_what_compiles_quickly_except_on_tpus(model, monkeypatch):
    deep = dataclasses.replace(model, n_layers=33, scan_layers="auto")
    shallow = dataclasses.replace(deep, n_layers=32)
    assert (gpt3.scans_layers(deep), gpt3.scans_layers(shallow)) == (True, False)
    assert gpt3.scans_layers(dataclasses.replace(shallow, scan_layers=True))
    monkeypatch.setattr("gpt3jax.model.gpt3.platform", lambda: "tpu")
    assert gpt3.scans_layers(shallow)
    assert not gpt3.scans_layers(dataclasses.replace(deep, scan_layers=False))
