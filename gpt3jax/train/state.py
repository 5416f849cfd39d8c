"""The train state and its sharding.

Parameters that are not trained are part of the state, but have no optimizer moments.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from flax.traverse_util import flatten_dict, path_aware_map, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt3jax.config import Experiment
from gpt3jax.errors import ConfigError
from gpt3jax.model.init import Params, abstract_params, init_params
from gpt3jax.model.trainable import trained
from gpt3jax.train.optimizers import make_optimizer


@struct.dataclass
class TrainState:
    """The parameters and the optimizer state."""

    params: Params
    optimizer: Any


def init_state(experiment: Experiment) -> TrainState:
    """State 0: parameters initialised from the seed, zero moments."""
    params = init_params(jax.random.key(experiment.seed), experiment.model)
    return with_fresh_moments(params, experiment)


def with_fresh_moments(params: Params, experiment: Experiment) -> TrainState:
    """The initial state for these parameters, with zero moments."""
    part, _ = partition(params, experiment)
    return TrainState(params, make_optimizer(experiment).init(part))


def partition(
    tree: dict[str, Any], experiment: Experiment
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a tree with the structure of the parameters into trained and other leaves."""
    flat, chosen = flatten_dict(tree, sep="/"), trained(experiment)
    part = {path: leaf for path, leaf in flat.items() if path in chosen}
    rest = {path: leaf for path, leaf in flat.items() if path not in chosen}
    return unflatten_dict(part, sep="/"), unflatten_dict(rest, sep="/")


def combine(part: dict[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `partition`."""
    flat = flatten_dict(part, sep="/") | flatten_dict(rest, sep="/")
    return unflatten_dict(flat, sep="/")


def select_trained_layers(
    new: dict[str, Any], old: dict[str, Any], experiment: Experiment
) -> dict[str, Any]:
    """For trees of trained leaves: `new` in the trained layers, `old` in the others."""

    def pick(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        layers = trained(experiment)["/".join(path)]
        if all(layers):
            return leaf
        is_trained = jnp.array(layers).reshape(-1, *(1 for _ in leaf.shape[1:]))
        return jnp.where(is_trained, leaf, before[path])

    before: dict[Any, Any] = flatten_dict(old)
    return path_aware_map(pick, new)  # pyright: ignore[reportReturnType]


def abstract_state(experiment: Experiment, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, without arrays.

    Optimizer state with the shape of a parameter, and a path that ends with its path, is sharded
    like it. Small state, such as counters, is replicated.

    Raises:
      ConfigError: the optimizer has other state as large as a parameter.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    shapes = jax.eval_shape(lambda: init_state(experiment))
    params = abstract_params(experiment.model, mesh)
    trained_params: dict[str, Any] = flatten_dict(partition(params, experiment)[0], sep="/")
    smallest = min(param.size for param in trained_params.values())

    def place(at: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        path = "/" + jax.tree_util.keystr(at, simple=True, separator="/")
        for name, param in trained_params.items():
            if path.endswith("/" + name) and leaf.shape == param.shape:
                return _with_sharding(leaf, param.sharding)
        if leaf.size >= smallest:
            raise ConfigError(
                f"optimizer state {path[1:]} cannot be placed on the mesh: its shape {leaf.shape} "
                "is not that of the parameter its path ends with, and each device would have a "
                "full copy. Use an optimizer whose state has the shapes of the parameters"
            )
        return _with_sharding(leaf, everywhere)

    return TrainState(params, jax.tree_util.tree_map_with_path(place, shapes.optimizer))


def init_sharded_state(experiment: Experiment, mesh: Mesh) -> TrainState:
    """State 0, initialised directly on the mesh, so that no device stores more than its shard."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(experiment, mesh))
    with jax.set_mesh(mesh):
        make = jax.jit(
            lambda: init_state(experiment),
            out_shardings=shardings,
            compiler_options=fast_compile_options(mesh, level=1),
        )
        return make()


def fast_compile_options(mesh: Mesh, level: int) -> dict[str, int] | None:
    """Options for faster compilation on CPUs than XLA's level 3, unless XLA_FLAGS sets a level.

    Results are bit-identical. For the demo, the initial state takes 0.7 s at level 1 instead of
    2.5 s; the step compiles a second faster at level 2 and runs as fast.
    """
    name = "xla_backend_optimization_level"
    is_set = name in os.environ.get("XLA_FLAGS", "")
    return {name: level} if mesh.devices.flat[0].platform == "cpu" and not is_set else None


def _with_sharding(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
