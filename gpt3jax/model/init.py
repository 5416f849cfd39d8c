"""Initial parameters as a nested dict of arrays, derived from `param_specs`."""

from __future__ import annotations

import zlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from gpt3jax.config import Model
from gpt3jax.model.param_specs import ParamSpec, param_specs
from gpt3jax.sharding.rules import param_shardings

Params = dict[str, Any]


def init_params(key: jax.Array, model: Model) -> Params:
    """Sample the initial parameters, float32.

    The key of each array is derived from its path, so that a seed gives the same values on every
    mesh and adding a parameter does not change the others. Padding rows of the token embedding
    are zero.
    """

    def draw(path: tuple[Any, ...], spec: ParamSpec) -> jax.Array:
        if spec.init != "normal":
            return jnp.full(spec.shape, float(spec.init == "ones"), jnp.float32)
        own_key = jax.random.fold_in(key, zlib.crc32("/".join(path).encode()))
        value = spec.std * jax.random.normal(own_key, spec.shape, jnp.float32)
        if path == ("token_embedding",):
            is_real = jnp.arange(spec.shape[0]) < model.vocabulary
            value = jnp.where(is_real[:, None], value, 0.0)
        return value

    return traverse_util.path_aware_map(  # pyright: ignore[reportReturnType]
        draw, param_specs(model)
    )


def abstract_params(model: Model, mesh: jax.sharding.Mesh) -> Params:
    """Shapes, dtypes and shardings of the parameters on a mesh, without arrays."""
    specs = param_specs(model)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(lambda: init_params(jax.random.key(0), model)),
        param_shardings(specs, mesh),
    )


def decayed(params: Params) -> Params:
    """Mask of the leaves with weight decay: matrices and embeddings, not biases or gains."""
    return traverse_util.path_aware_map(  # pyright: ignore[reportReturnType]
        lambda path, _: path[-1] not in ("bias", "gain"), params
    )
