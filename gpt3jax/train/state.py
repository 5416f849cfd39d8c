"""What training changes, and how it lies on the mesh."""

from __future__ import annotations

from typing import Any

import jax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt3jax.config import Experiment
from gpt3jax.model import params as model_params
from gpt3jax.model import table as model_table
from gpt3jax.sharding.rules import param_shardings
from gpt3jax.train.optimizer import make_optimizer


@struct.dataclass
class TrainState:
    """Everything on the devices that a step reads and replaces."""

    params: model_params.Params
    optimizer: Any


def new_state(experiment: Experiment) -> TrainState:
    """State 0: parameters drawn from the seed, optimizer moments zero."""
    params = model_params.init(jax.random.key(experiment.seed), experiment.model)
    return TrainState(params, make_optimizer(experiment.optimizer).init(params))


def abstract_state(experiment: Experiment, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, without arrays.

    Moments lie as their parameters do; counters are everywhere.
    """
    by_param = param_shardings(model_table.table(experiment.model), mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    shapes = jax.eval_shape(lambda: new_state(experiment))
    of_params = jax.tree.structure(by_param)

    def place(node: Any) -> Any:
        if jax.tree.structure(node) == of_params:
            return jax.tree.map(_with_sharding, node, by_param)
        return _with_sharding(node, everywhere)

    def is_whole(node: Any) -> bool:
        return jax.tree.structure(node) == of_params

    return jax.tree.map(place, shapes, is_leaf=is_whole)


def sharded_state(experiment: Experiment, mesh: Mesh) -> TrainState:
    """State 0, made in place on the mesh: no device ever holds more than its part."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(experiment, mesh))
    with jax.set_mesh(mesh):
        return jax.jit(lambda: new_state(experiment), out_shardings=shardings)()


def _with_sharding(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
