"""The properties that define the system, in one place."""

import dataclasses
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from building import changed, logits_of, loss_of, randomised
from jax.sharding import NamedSharding

from gpt3jax.config import Mesh
from gpt3jax.decoding import decode
from gpt3jax.model import attention
from gpt3jax.model.gpt3 import block, forward
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.sharding.rules import partition_spec
from gpt3jax.train.optimizers import make_optimizer
from gpt3jax.train.state import TrainState, abstract_state, init_sharded_state
from gpt3jax.train.step import compile_train_step


def plain_loss(params, windows, model):
    """The loss as one would write it down: all logits, softmax, the target's."""
    logits = logits_of(params, windows[:, :-1], model)[..., : model.vocabulary]
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.take_along_axis(log_p, windows[:, 1:, None], axis=-1).mean()


def tokens_of(model, rows=2, seed=3):
    shape = (rows, model.context)
    return jax.random.randint(jax.random.key(seed), shape, 0, model.vocabulary)


def influence(model, params, position):
    """Gradient size of the logits at `position` by the position embedding of each token."""

    def logits(table):
        changed_params = {**params, "position_embedding": table}
        return logits_of(changed_params, tokens_of(model, 1), model)[0, position].sum()

    gradient = jax.jit(jax.grad(logits))(params["position_embedding"])
    return np.abs(np.asarray(gradient)).sum(-1)


def test_no_position_sees_the_future(model, params):
    for position in (0, 5, model.context - 2):
        size = influence(model, params, position)
        assert (size[position + 1 :] == 0).all()
        assert (size[: position + 1] > 0).all(), "every dense layer sees the whole past"


def test_a_banded_layer_sees_its_band_and_nothing_else(model, params):
    layer = jax.tree.map(lambda leaf: leaf[1], params["layers"])
    x_BTD = jax.random.normal(jax.random.key(0), (1, model.context, model.d_model))
    five = partial(attention.causal_attention, band=5)
    last = jax.jit(jax.grad(lambda x: block(layer, x, five, model)[0][0, 30].sum()))
    size = np.abs(np.asarray(last(x_BTD)))[0].sum(-1)
    assert np.flatnonzero(size).tolist() == [26, 27, 28, 29, 30]


def test_layers_are_dense_and_banded_in_turn(model):
    assert [model.is_dense(layer) for layer in range(4)] == [True, False, True, False]
    every_third = dataclasses.replace(model, dense_every=3)
    assert [every_third.is_dense(layer) for layer in range(4)] == [True, False, False, True]


def test_cached_decoding_equals_the_full_forward(model, params):
    tokens = tokens_of(model)
    whole = jax.jit(partial(forward, model=model))(params, tokens).logits[..., : model.vocabulary]
    ready = decode.decoding_params(params, model)
    read = 9
    padded = tokens[:, :16].at[:, read:].set(7)
    prefill, step = (jax.jit(f, static_argnames="model") for f in (decode.prefill, decode.decode))
    logits, cache = prefill(ready, padded, jnp.int32(read), model)
    np.testing.assert_allclose(logits, whole[:, read - 1], atol=1e-5)
    for position in range(read, model.context):
        logits, cache = step(ready, cache, tokens[:, position], model)
        np.testing.assert_allclose(logits, whole[:, position], atol=1e-5)


@pytest.mark.parametrize("rows", [2048, 16, 1])
@pytest.mark.in_ci("16")
def test_the_loss_taken_some_rows_at_a_time_is_the_plain_loss(model, params, rows, monkeypatch):
    monkeypatch.setattr("gpt3jax.model.logprobs.LOGIT_ROWS", {"cpu": rows})
    windows = jax.random.randint(jax.random.key(0), (2, model.context + 1), 0, model.vocabulary)
    expected, plain = jax.jit(jax.value_and_grad(plain_loss), static_argnums=2)(
        params, windows, model
    )
    loss, gradients = jax.jit(jax.value_and_grad(loss_of), static_argnums=2)(params, windows, model)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert float(loss_of(params, windows, model)) == pytest.approx(float(expected), rel=1e-6)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 * float(jnp.abs(a).max()))


@pytest.mark.parametrize(
    "how",
    [
        {"scan_layers": True},
        {"remat": "mlp"},
        {"remat": "dots"},
        {"remat": "full"},
        {"scan_layers": True, "remat": "full"},
        {"scan_layers": True, "remat": "dots"},
    ],
)
@pytest.mark.in_ci("how2", "how4")
def test_scanned_and_rematerialised_layers_give_the_same_loss_and_gradients(model, params, how):
    windows = jax.random.randint(jax.random.key(0), (2, model.context + 1), 0, model.vocabulary)
    loss_and_gradients = jax.value_and_grad(loss_of)
    loss, gradients = jax.jit(lambda p: loss_and_gradients(p, windows, model))(params)
    other = dataclasses.replace(model, **how)
    loss_2, gradients_2 = jax.jit(lambda p: loss_and_gradients(p, windows, other))(params)
    assert loss_2 == pytest.approx(float(loss), rel=1e-6)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(gradients_2), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 * float(jnp.abs(a).max()))


def steps_on(experiment, mesh_sizes, windows_MBT1, steps=3):
    """Loss and gradient norm of a few training steps on a mesh, from randomised parameters."""
    mesh = make_mesh(Mesh(*mesh_sizes), jax.devices()[: int(np.prod(mesh_sizes))])
    with jax.set_mesh(mesh):
        shardings = jax.tree.map(lambda x: x.sharding, abstract_state(experiment, mesh))
        params = randomised(experiment.model)
        moments = make_optimizer(experiment).init(params)
        state = jax.device_put(TrainState(params, moments), shardings)
        place = NamedSharding(mesh, partition_spec((None, "batch", None)))
        batch = jax.device_put(windows_MBT1, place)
        step, losses = compile_train_step(experiment, mesh), []
        for _ in range(steps):
            state, metrics = step(state, batch, jnp.int32(len(batch)), jnp.float32(1e-3))
            # The norm too: Adam's update would hide a gradient that is off by a factor.
            losses += [float(metrics["loss"]), float(metrics["grad_norm"])]
    return losses, state


@lru_cache
def losses_alone(experiment):
    return steps_on(experiment, (1, 1, 1), random_windows()[None])[0]


def random_windows():
    return np.random.default_rng(0).integers(0, 300, (8, 49)).astype(np.int32)


@pytest.mark.parametrize(
    ("mesh", "scan"),
    [
        ((8, 1, 1), False),
        ((1, 8, 1), True),
        ((1, 1, 4), True),
        ((2, 4, 1), True),
        ((2, 2, 2), True),
        ((1, 2, 4), False),
    ],
)
@pytest.mark.in_ci("mesh0-*", "mesh2-*", "mesh4-*")
def test_every_mesh_gives_the_loss_of_one_device(experiment, mesh, scan):
    experiment = changed(experiment, model={"scan_layers": scan})
    losses, state = steps_on(experiment, mesh, random_windows()[None])
    alone = losses_alone(experiment)
    assert losses[::2] == pytest.approx(alone[::2], rel=1e-6)
    assert losses[1::2] == pytest.approx(alone[1::2], rel=1e-5)
    qkv = state.params["layers"]["qkv"]["kernel"]
    assert qkv.addressable_shards[0].data.size == qkv.size // (mesh[1] * mesh[2])


def test_gathering_in_two_stages_gives_the_same_loss(experiment, monkeypatch):
    monkeypatch.setattr("gpt3jax.train.step.first_stage_size", lambda mesh: 2)
    experiment = changed(experiment, model={"scan_layers": True})
    losses, _ = steps_on(experiment, (2, 4, 1), random_windows()[None])
    assert losses == pytest.approx(losses_alone(experiment), rel=1e-5)


def test_microbatches_add_up_to_the_whole_batch_without_a_new_compilation(experiment):
    windows, whole = random_windows(), losses_alone(experiment)
    parts = changed(experiment, train={"microbatch": 2})
    losses, _ = steps_on(parts, (1, 1, 1), windows.reshape(4, 2, 49))
    assert losses == pytest.approx(whole, rel=1e-5)

    mesh = make_mesh(Mesh(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        step = compile_train_step(parts, mesh)
        state = init_sharded_state(parts, mesh)
        seen, programs = [], set()
        for count in (1, 2, 4):
            batch = windows.reshape(4, 2, 49)
            # What lies past the count is not read: poison it.
            batch = np.where(np.arange(4)[:, None, None] < count, batch, 299)
            before = jax.tree.map(jnp.copy, state.params)
            state, metrics = step(state, batch, jnp.int32(count), jnp.float32(0.0))
            used = batch[:count].reshape(-1, 49)
            seen.append((float(metrics["loss"]), float(loss_of(before, used, parts.model))))
            programs.add(step._cache_size())
        assert len(programs) == 1
    for found, expected in seen:
        assert found == pytest.approx(expected, rel=1e-6)


def test_padding_rows_of_the_vocabulary_have_no_probability_and_no_gradient(model, params):
    tokens = tokens_of(model)
    logits = jax.jit(partial(forward, model=model))(params, tokens).logits
    assert logits.shape[-1] == model.padded_vocabulary == 384
    probability = jax.nn.softmax(logits, axis=-1)
    assert (probability[..., model.vocabulary :] == 0).all()
    windows = jnp.concatenate([tokens, tokens[:, :1]], axis=1)
    gradients = jax.jit(jax.grad(loss_of), static_argnums=2)(params, windows, model)
    assert (gradients["token_embedding"][model.vocabulary :] == 0).all()


def test_asking_for_activations_changes_no_logit(model, params):
    tokens = tokens_of(model)
    for scan in (False, True):
        run = dataclasses.replace(model, scan_layers=scan)
        plain = jax.jit(partial(forward, model=run))(params, tokens).logits
        asked = jax.jit(partial(forward, model=run, want=("residual", "keys")))(params, tokens)
        np.testing.assert_array_equal(np.asarray(plain), np.asarray(asked.logits))
        assert len(asked.activations["residual"]) == model.n_layers
        assert asked.activations["keys"][0].shape == (2, model.context, 4, 8)


def test_an_id_outside_the_vocabulary_is_not_clamped_silently(model, params):
    tokens = tokens_of(model).at[0, 3].set(model.padded_vocabulary + 5)
    logits = jax.jit(partial(forward, model=model))(params, tokens).logits
    assert jnp.isnan(logits[0, 5, : model.vocabulary]).all()
