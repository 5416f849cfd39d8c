"""Capture, lens, attention and edits: the forward pass that trains, seen and changed on its way."""

import dataclasses
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from building import logits_of

from gpt3jax.config import Mesh
from gpt3jax.errors import ConfigError
from gpt3jax.inspect.capture import attention_of, capture
from gpt3jax.inspect.edits import ablate_head, in_turn, patch, steer
from gpt3jax.inspect.heads import head_stats, induction
from gpt3jax.inspect.lens import guesses, lens
from gpt3jax.model.gpt3 import EDIT_POINTS, forward
from gpt3jax.model.param_specs import named_specs, param_specs
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.sharding.rules import param_shardings


@pytest.fixture
def tokens():
    return jax.random.randint(jax.random.key(3), (2, 20), 0, 300)


@pytest.fixture(params=["unrolled", "scan", "remat"])
def run(request, model):
    remat = "full" if request.param == "remat" else "none"
    return dataclasses.replace(model, scan_layers=request.param == "scan", remat=remat)


def test_asking_for_everything_changes_no_bit_of_the_logits(run, params, tokens):
    plain = jax.jit(partial(forward, model=run))(params, tokens)
    asked = jax.jit(partial(forward, model=run, want=EDIT_POINTS))(params, tokens)
    assert plain.activations == {} and set(asked.activations) == set(EDIT_POINTS)
    np.testing.assert_array_equal(np.asarray(plain.logits), np.asarray(asked.logits))


def test_nothing_is_kept_that_is_not_asked(run, params, tokens):
    def arrays(want):
        lowered = jax.jit(partial(forward, model=run, want=want)).lower(params, tokens)
        return len(jax.tree.leaves(lowered.out_info))

    of_each = 1 if run.scan_layers else run.n_layers
    assert arrays(()) == 1
    assert arrays(("queries",)) == 1 + of_each
    assert arrays(("embedded", "mlp", "heads")) == 2 + 2 * of_each


def test_the_stream_is_the_sum_of_what_was_added(run, params, tokens):
    found = capture(params, tokens, run, EDIT_POINTS).activations
    x = found["embedded"]
    for layer in range(run.n_layers):
        x = x + found["attention"][layer] + found["mlp"][layer]
        np.testing.assert_allclose(x, found["residual"][layer], atol=1e-5)
    assert found["heads"].shape == (4, 2, 20, 4, 8)


def test_the_lens_at_the_end_is_the_model(model, params, tokens):
    output = capture(params, tokens, model, ("residual",))
    after = output.activations["residual"]
    np.testing.assert_allclose(lens(params, after[-1], model), output.logits, atol=1e-5)
    found = guesses(params, after[-1], tokens, model, 5)
    log_p = jax.nn.log_softmax(output.logits)
    best = np.argsort(-np.asarray(log_p))[..., :5]
    np.testing.assert_array_equal(found["tokens"], best)
    np.testing.assert_allclose(found["entropy"], -(np.exp(log_p) * log_p).sum(-1), rtol=1e-4)
    of_tokens = np.take_along_axis(np.asarray(log_p), np.asarray(tokens)[..., None], -1)
    np.testing.assert_allclose(found["target_log_p"], of_tokens[..., 0], atol=1e-5)
    np.testing.assert_array_equal(found["rank"], (log_p > of_tokens).sum(-1))
    early = guesses(params, after[0], tokens, model, 5)
    assert not np.allclose(early["entropy"], found["entropy"])


def test_attention_weights_are_those_that_the_heads_used(run, params, tokens):
    found = capture(params, tokens, run, ("queries", "keys", "values", "heads")).activations
    for layer in range(run.n_layers):
        weights = attention_of(found, layer, run)
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
        read = jnp.einsum("bhts,bshk->bthk", weights, found["values"][layer])
        np.testing.assert_allclose(read, found["heads"][layer], atol=1e-5)
        back = np.subtract.outer(np.arange(20), np.arange(20))
        hidden = (back < 0) | (back >= (20 if run.is_dense(layer) else run.band))
        assert (np.asarray(weights)[..., hidden] == 0).all()


def test_head_stats_of_one_hot_and_uniform_attention():
    T = 6
    before = np.eye(T, k=-1)
    before[0, 0] = 1
    even = np.tril(np.ones((T, T))) / np.arange(1, T + 1)[:, None]
    facts = head_stats(jnp.asarray(np.stack([np.eye(T), before, even]), jnp.float32))
    np.testing.assert_allclose(facts["itself"], [1, 1 / T, np.mean(1 / np.arange(1, T + 1))], 1e-6)
    np.testing.assert_allclose(facts["previous"][:2], [0, 1])
    np.testing.assert_allclose(facts["distance"][:2], [0, (T - 1) / T], rtol=1e-6)
    np.testing.assert_allclose(facts["entropy"][:2], 0, atol=1e-6)
    assert facts["entropy"][2] == pytest.approx(np.mean(np.log(np.arange(1, T + 1))), rel=1e-5)
    np.testing.assert_allclose(facts["first"][:2], [0, 1 / (T - 1)], rtol=1e-6)


def test_induction_sees_a_head_that_looks_for_what_followed(model, params, monkeypatch):
    score = induction(params, model)
    assert score.shape == (4, 4) and (score >= 0).all() and (score < 0.5).all()

    def planted(activations, layer, model):
        T = activations["keys"].shape[2]
        length = T // 2
        assert length < model.band
        wanted = np.eye(T, k=-(length - 1))
        return jnp.asarray(np.stack([wanted, np.eye(T, k=-length), np.eye(T, k=-1)] * 2)[None, :4])

    monkeypatch.setattr("gpt3jax.inspect.heads.attention_of", planted)
    np.testing.assert_allclose(induction(params, model)[2], [1, 0, 0, 1])


def test_an_ablated_head_adds_nothing(run, params, tokens):
    found = capture(params, tokens, run, ("heads", "attention"), ablate_head(2, 1)).activations
    plain = capture(params, tokens, run, ("heads", "attention")).activations
    assert (found["heads"][2, :, :, 1] == 0).all()
    for layer, head in ((2, 0), (2, 3), (1, 1)):
        np.testing.assert_array_equal(found["heads"][layer, :, :, head],
                                      plain["heads"][layer, :, :, head])  # fmt: skip
    out = params["layers"]["out"]["kernel"][2, 1]
    missing = jnp.einsum("btk,kd->btd", plain["heads"][2, :, :, 1], out)
    np.testing.assert_allclose(found["attention"][2] + missing, plain["attention"][2], atol=1e-5)


def test_patching_all_of_the_stream_gives_the_other_texts_answer(run, params, tokens):
    other = capture(params, tokens[::-1], run, ("residual",))
    patched = capture(
        params, tokens, run, (), patch("residual", 1, other.activations["residual"][1])
    )
    np.testing.assert_allclose(patched.logits, other.logits, atol=1e-5)
    plain = capture(params, tokens, run, ())
    last = patch("residual", 1, other.activations["residual"][1], positions=[19])
    patched = capture(params, tokens, run, (), last)
    np.testing.assert_array_equal(patched.logits[:, :19], plain.logits[:, :19])
    assert not np.allclose(patched.logits[:, 19], plain.logits[:, 19], atol=1e-3)


def test_steering_moves_the_stream_along_the_vector(run, params, tokens):
    vector = jnp.arange(32.0)
    plain = capture(params, tokens, run, ("residual",)).activations["residual"]
    moved = capture(params, tokens, run, ("residual",), steer(1, vector)).activations["residual"]
    np.testing.assert_array_equal(moved[0], plain[0])
    np.testing.assert_allclose(moved[1] - plain[1], np.broadcast_to(vector, (2, 20, 32)), atol=1e-4)
    both = in_turn(steer(1, vector), steer(1, -vector))
    back = capture(params, tokens, run, ("residual",), both).activations["residual"]
    np.testing.assert_allclose(back[3], plain[3], atol=1e-4)


def test_an_edit_of_the_embedding_is_seen_by_all_that_follows(run, params, tokens):
    def silence(name, layer, value):
        assert (name == "embedded") == (isinstance(layer, int) and layer == -1)
        return 0 * value if name == "embedded" else value

    found = capture(params, tokens, run, ("embedded", "residual"), silence).activations
    assert (found["embedded"] == 0).all()
    np.testing.assert_array_equal(found["residual"][:, 0], found["residual"][:, 1])


def test_edits_hold_in_cached_decoding_and_training(model, params, tokens):
    """The same function, so the same edit."""
    edit = ablate_head(0, 2)
    without = jax.jit(partial(forward, model=model, edit=edit))(params, tokens).logits
    zeroed = params["layers"]["out"]["kernel"].at[0, 2].set(0)
    layers = {**params["layers"], "out": {**params["layers"]["out"], "kernel": zeroed}}
    expected = logits_of({**params, "layers": layers}, tokens, model)
    np.testing.assert_allclose(without, expected, atol=1e-4)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("mesh", [Mesh(2, 4, 1), Mesh(1, 2, 4), Mesh(2, 2, 2)], ids=str)
@pytest.mark.in_ci("*data=2, fsdp=2*")
def test_a_mesh_gives_the_same_activations_and_edits(model, params, tokens, mesh, scan):
    run = dataclasses.replace(model, scan_layers=scan)
    tokens = tokens[:, :19]  # Which no number of devices divides.
    edit = in_turn(ablate_head(1, 3), steer(2, jnp.arange(32.0)))
    expected = capture(params, tokens, run, EDIT_POINTS, edit)
    devices = make_mesh(mesh)
    with jax.set_mesh(devices):
        spread = jax.device_put(params, param_shardings(param_specs(run), devices))
        found = capture(spread, tokens, run, EDIT_POINTS, edit)
        best = guesses(spread, found.activations["residual"][-1], tokens, run, 3)
        looked = attention_of(found.activations, 1, run)
        parts = found.activations["queries"].addressable_shards
        assert parts[0].data.shape[3] == run.n_heads // mesh.tensor
    np.testing.assert_allclose(found.logits, expected.logits, atol=2e-4)
    for name in EDIT_POINTS:
        np.testing.assert_allclose(
            found.activations[name], expected.activations[name], atol=2e-4, err_msg=name
        )
    np.testing.assert_allclose(looked, attention_of(expected.activations, 1, run), atol=1e-4)
    alone = guesses(params, expected.activations["residual"][-1], tokens, run, 3)
    np.testing.assert_allclose(best["log_p"], alone["log_p"], atol=1e-4)


def test_a_mesh_fetches_weights_layer_by_layer(model, params, tokens):
    """No more of the model than a layer is gathered at a time: in the loop, never before it."""
    run = dataclasses.replace(model, scan_layers=True)
    devices = make_mesh(Mesh(1, 8, 1))
    with jax.set_mesh(devices):
        spread = jax.device_put(params, param_shardings(param_specs(run), devices))
        text = capture.lower(spread, tokens, run, ("residual",)).as_text()
    shapes = re.findall(r'"stablehlo.all_gather".*-> tensor<([0-9x]+)xf32>', text)
    gathered = sum(math.prod(map(int, shape.split("x"))) for shape in shapes)
    sizes = {name: math.prod(spec.shape) for name, spec in named_specs(param_specs(run))}
    of_layers = sum(size for name, size in sizes.items() if name.startswith("layers/"))
    tables = sizes["token_embedding"] + sizes["position_embedding"]
    assert 0 < gathered <= tables + of_layers // run.n_layers


def test_unsupported_captures_and_patches_are_refused(model, params, tokens):
    with pytest.raises(ConfigError, match="no activation 'logits'"):
        capture(params, tokens, model, ("logits",))
    devices = make_mesh(Mesh(2, 1, 4))
    with jax.set_mesh(devices), pytest.raises(ConfigError, match="does not support --mesh.tensor"):
        spread = jax.device_put(params, param_shardings(param_specs(model), devices))
        capture(spread, tokens, model, (), patch("residual", 1, np.zeros((2, 20, 32))))
