"""Where the optimizer's state lies on the mesh, whatever tree it is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from building import changed
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gpt3jax.checkpoint.checkpointer import Checkpointer
from gpt3jax.checkpoint.manifest import CheckpointManifest
from gpt3jax.config import Mesh
from gpt3jax.errors import ConfigError
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.train import state as train_state
from gpt3jax.train import step as train_step

PLACES = {
    "token_embedding": P("tensor", "fsdp"),
    "position_embedding": P(None, "fsdp"),
    "layers/norm_1/gain": P(None, "fsdp"),
    "layers/norm_1/bias": P(None, "fsdp"),
    "layers/qkv/kernel": P(None, "fsdp", "tensor", None, None),
    "layers/qkv/bias": P(None, "tensor", None, None),
    "layers/out/kernel": P(None, "tensor", None, "fsdp"),
    "layers/out/bias": P(None, "fsdp"),
    "layers/norm_2/gain": P(None, "fsdp"),
    "layers/norm_2/bias": P(None, "fsdp"),
    "layers/up/kernel": P(None, "fsdp", "tensor"),
    "layers/up/bias": P(None, "tensor"),
    "layers/down/kernel": P(None, "tensor", "fsdp"),
    "layers/down/bias": P(None, "fsdp"),
    "final_norm/gain": P("fsdp"),
    "final_norm/bias": P("fsdp"),
}


def kernels(params):
    """True of kernels."""
    return jax.tree_util.tree_map_with_path(lambda at, _: at[-1].key in ("kernel", "a"), params)


def masked():
    """Momentum of kernels alone, behind Adam without them."""
    others = optax.masked(
        optax.scale_by_adam(), lambda p: jax.tree.map(lambda k: not k, kernels(p))
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0), others, optax.masked(optax.trace(0.9), kernels)
    )


def multi_transform():
    def labels(params):
        return jax.tree.map(lambda k: "momentum" if k else "adam", kernels(params))

    return optax.multi_transform(
        {"momentum": optax.trace(0.9), "adam": optax.scale_by_adam()}, labels
    )


def muon():
    """Of each layer's kernels; Adam of the rest."""

    def dimensions(params):
        kind = optax.contrib.MuonDimensionNumbers
        return jax.tree.map(
            lambda k, p: kind(tuple(range(1, p.ndim - 1)), p.ndim - 1) if k else None,
            kernels(params), params,
        )  # fmt: skip

    return optax.contrib.muon(1.0, muon_weight_dimension_numbers=dimensions)


@pytest.fixture
def uses(monkeypatch):
    """Training with another optimizer."""

    def use(make):
        for module in (train_state, train_step):
            monkeypatch.setattr(module, "make_optimizer", lambda _: make())

    return use


def leaves(tree):
    return {
        jax.tree_util.keystr(at, simple=True, separator="/"): leaf
        for at, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def check_places(optimizer, params, smallest):
    """How many leaves lie as PLACES says; the others are counters, which are everywhere."""
    count = 0
    for path, leaf in leaves(optimizer).items():
        name = next((name for name in params if path.endswith("/" + name)), None)
        place = leaf.sharding.spec
        if leaf.size < smallest:
            assert place == P(), path
            continue
        count += 1
        assert leaf.shape == params[name].shape and place == PLACES[name], path
    return count


@pytest.mark.parametrize("make", [masked, multi_transform, muon])
@pytest.mark.parametrize("sizes", [(2, 4, 1), (1, 4, 2)])
@pytest.mark.in_ci("*muon")
def test_masked_and_partitioned_moments_lie_as_their_parameters_do(experiment, uses, make, sizes):
    uses(make)
    mesh = make_mesh(Mesh(*sizes), jax.devices())
    for state in (
        train_state.abstract_state(experiment, mesh),
        train_state.init_sharded_state(experiment, mesh),
    ):
        params = leaves(state.params)
        assert params.keys() == PLACES.keys()
        # Adam has two moments, momentum and muon one, of four kernels.
        assert check_places(state.optimizer, params, experiment.model.d_model) == 2 * 12 + 4


@pytest.mark.parametrize("make", [masked, multi_transform, muon])
@pytest.mark.in_ci("muon")
def test_a_step_and_a_checkpoint_leave_such_moments_where_they_are(
    experiment, uses, make, tmp_path
):
    """And the values are those of one device."""
    uses(make)
    windows = np.random.default_rng(0).integers(0, 300, (1, 8, 49)).astype(np.int32)

    def stepped(sizes):
        mesh = make_mesh(Mesh(*sizes), jax.devices()[: int(np.prod(sizes))])
        with jax.set_mesh(mesh):
            state = train_state.init_sharded_state(experiment, mesh)
            place = NamedSharding(mesh, P(None, ("data", "fsdp"), None))
            step = train_step.compile_train_step(experiment, mesh)
            state, _ = step(state, jax.device_put(windows, place), jnp.int32(1), jnp.float32(1e-3))
        return mesh, state

    mesh, state = stepped((2, 4, 1))
    check_places(state.optimizer, leaves(state.params), experiment.model.d_model)
    _, alone = stepped((1, 1, 1))
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-5)
    checkpoints = Checkpointer(tmp_path, keep=1)
    checkpoints.save(state, CheckpointManifest(1, 8, (), "0", {}, {}), lambda manifest: None)
    checkpoints.wait()
    restored = checkpoints.restore(1, train_state.abstract_state(experiment, mesh))
    checkpoints.close()
    check_places(restored.optimizer, leaves(restored.params), experiment.model.d_model)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(b, a)


@pytest.mark.parametrize("make", [masked, multi_transform, muon])
@pytest.mark.parametrize(
    ("changes", "trained"),
    [
        ({"train": {"only": ("layers[1:3]/up", "final_norm")}}, {"layers/up", "final_norm"}),
        ({"model": {"lora_rank": 2}}, {"layers/lora"}),
    ],
)
def test_moments_of_what_is_trained_alone_lie_as_it_does(experiment, uses, make, changes, trained):
    uses(make)
    experiment = changed(experiment, **changes)
    mesh = make_mesh(Mesh(2, 2, 2), jax.devices())
    state = train_state.abstract_state(experiment, mesh)
    params, found = leaves(state.params), set()
    for path, leaf in leaves(state.optimizer).items():
        name = next((name for name in params if path.endswith("/" + name)), None)
        if name is None:
            assert leaf.size < 16 and leaf.sharding.spec == P(), path
        else:
            found.add(name)
            assert leaf.sharding == params[name].sharding and leaf.shape == params[name].shape
    assert found == {name for name in params if any(name.startswith(part) for part in trained)}


def flat():
    return optax.flatten(optax.scale_by_adam())


def per_row():
    return optax.scale_by_factored_rms(min_dim_size_to_factor=8)


@pytest.mark.parametrize(
    ("make", "path"), [(flat, "mu"), (per_row, "v_row/final_norm|v_row/layers|v_col/layers")]
)
def test_moments_that_cannot_be_placed_by_parameter_are_refused_by_path(
    experiment, uses, make, path
):
    uses(make)
    mesh = make_mesh(Mesh(2, 4, 1), jax.devices())
    with pytest.raises(ConfigError, match=f"optimizer state ({path})\\S* cannot be placed"):
        train_state.abstract_state(experiment, mesh)
