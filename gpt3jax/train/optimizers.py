"""Optimizers: one function, returning an optax transformation, per record in config/optimizer.py.

Updates have unit learning rate; the train step multiplies them by -learning_rate. The state of a
parameter has the shape of the parameter and a path that ends with its path, and is sharded like it
(state.py). `plan` takes its size from `state_bytes` of the record.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import path_aware_map

from gpt3jax.config import AdamW, Experiment, Model, Muon
from gpt3jax.config.optimizer import is_matrix
from gpt3jax.model.init import decayed
from gpt3jax.model.param_specs import named_specs, param_specs
from gpt3jax.train.muon import scale_by_muon


def adamw(config: AdamW, model: Model) -> optax.GradientTransformation:
    """Clipping by the global norm, Adam, and decoupled weight decay (Appendix B)."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        scale_by_adam(config),
        *([] if model.mup_base is None else [scale_by_mup_rates(model)]),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
    )


def muon(config: Muon, model: Model) -> optax.GradientTransformation:
    """Clipping by the global norm, Muon for matrices and Adam for the rest, and weight decay."""
    adam = config.adamw
    matrices = optax.chain(
        scale_by_muon(config.momentum, model),
        optax.add_decayed_weights(adam.weight_decay),
        optax.scale(config.matrix_rate),
    )
    others = optax.chain(
        scale_by_adam(adam),
        optax.add_decayed_weights(adam.weight_decay, mask=decayed),
    )
    return optax.chain(
        optax.clip_by_global_norm(adam.clip_norm),
        optax.partition({"matrices": matrices, "others": others}, _labels),
    )


OPTIMIZERS: dict[type, Callable[..., optax.GradientTransformation]] = {
    AdamW: adamw,
    Muon: muon,
}


def make_optimizer(experiment: Experiment) -> optax.GradientTransformation:
    """The optimizer of an experiment."""
    return OPTIMIZERS[type(experiment.optimizer)](experiment.optimizer, experiment.model)


def scale_by_adam(config: AdamW) -> optax.GradientTransformation:
    """Adam, computed in float32, with its moments stored in `config.moments`."""
    adam = optax.scale_by_adam(config.b1, config.b2, config.epsilon)

    def update(updates, state, params=None):
        updates, state = adam.update(updates, _moments_as(state, jnp.float32), params)
        return updates, _moments_as(state, config.moments)

    return optax.GradientTransformation(
        lambda params: _moments_as(adam.init(params), config.moments), update
    )


def _moments_as(state, dtype):
    mu, nu = (jax.tree.map(lambda moment: moment.astype(dtype), m) for m in (state.mu, state.nu))
    return state._replace(mu=mu, nu=nu)


def _labels(params):
    return path_aware_map(
        lambda path, _: "matrices" if is_matrix("/".join(map(str, path))) else "others", params
    )


def scale_by_mup_rates(model: Model) -> optax.GradientTransformation:
    """Multiply each update by the muP rate of its parameter (`ParamSpec.rate`)."""
    rates = {path: spec.rate for path, spec in named_specs(param_specs(model))}

    def scaled(updates, params):
        return path_aware_map(lambda path, u: u * rates["/".join(map(str, path))], updates)

    return optax.stateless(scaled)
