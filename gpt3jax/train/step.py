"""The train step as a pure function, compiled once.

Each device computes loss and gradients for its shard of the batch under `shard_map`
(sharding/collectives.py). The update is elementwise on the sharded parameters.

Legend: M microbatches, B windows in one, T context.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from gpt3jax.config import Evaluate, Experiment, Model
from gpt3jax.model.gpt3 import compute_dtype
from gpt3jax.model.param_specs import param_specs
from gpt3jax.sharding.axes import AXES
from gpt3jax.sharding.collectives import axis_size, psum, psum_replicated, shard_map
from gpt3jax.sharding.mesh import first_stage_size
from gpt3jax.sharding.rules import partition_spec, partition_specs
from gpt3jax.train.loss import learned_share, window_loss
from gpt3jax.train.monitor.noise_scale import estimate, small_squares
from gpt3jax.train.optimizers import make_optimizer
from gpt3jax.train.state import (
    TrainState,
    abstract_state,
    combine,
    fast_compile_options,
    partition,
    select_trained_layers,
)

Metrics = dict[str, jax.Array]
Loss = Callable[..., tuple[jax.Array, Metrics]]


def train_step(
    state: TrainState,
    windows_MBT1: jax.Array,
    microbatches: jax.Array,
    learning_rate: jax.Array,
    *,
    experiment: Experiment,
    first_stage: int = 1,
    loss: Loss = window_loss,
) -> tuple[TrainState, Metrics]:
    """Update the state with the gradient of a batch.

    Args:
      state: the state before the step.
      windows_MBT1: int32 token windows. Only the first `microbatches` are used, and the last of
        them may contain padding, so that the batch can grow by single windows without
        recompilation.
      microbatches: int32 scalar, at least 1.
      learning_rate: float32 scalar.
      experiment: the experiment.
      first_stage: number of devices in the first stage of the all-gather of weights (mesh.py).
      loss: `window_loss`, or another function with its arguments and results.

    Returns:
      The next state, and scalars, which are logged: `loss` (nats per learned token), `grad_norm`
      (of the trained parameters, before clipping), those that the loss returns (loss.py), and with
      `train.noise_scale` `grad_square` and `grad_variance` (monitor/noise_scale.py). If the loss
      or the norm is not finite, the state is returned unchanged.
    """
    parts, other_parts = partition(partition_specs(param_specs(experiment.model)), experiment)
    mean_gradients = shard_map(
        partial(_mean_gradients, experiment=experiment, parts=parts, loss=loss),
        in_specs=(parts, other_parts, partition_spec((None, "batch", None)), PartitionSpec()),
        out_specs=(PartitionSpec(), parts),
        first_stage=first_stage,
    )
    params, others = partition(state.params, experiment)
    scalars, gradients = mean_gradients(params, others, windows_MBT1, microbatches)
    zeros = jax.tree.map(jnp.zeros_like, gradients)
    gradients = select_trained_layers(gradients, zeros, experiment)
    optimizer = make_optimizer(experiment)
    update, moments = optimizer.update(gradients, state.optimizer, params)
    updated = jax.tree.map(lambda p, u: p - learning_rate * u, params, update)
    # Weight decay moves all that it is given.
    updated = select_trained_layers(updated, params, experiment)
    metrics = {**scalars, "grad_norm": optax.tree.norm(gradients)}
    is_good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    after = TrainState(combine(updated, others), moments)
    return jax.tree.map(partial(jnp.where, is_good), after, state), metrics


def _mean_gradients(
    params, others, windows_MBT1, microbatches, experiment: Experiment, parts, loss: Loss
):
    """Scalars, and gradients with respect to `params`, averaged over the learned tokens."""

    def loss_of(part, windows_BT1, share=None):
        return loss(combine(part, others), windows_BT1, experiment.model, share)

    def named(value, aux):
        return {"loss": value, **aux}

    loss_and_gradients = jax.value_and_grad(loss_of, has_aux=True)
    if windows_MBT1.shape[0] == 1:
        (value, aux), gradients = loss_and_gradients(params, windows_MBT1[0])
        return _psum_each(named(value, aux)), psum_replicated(gradients, parts)
    is_read_M = jnp.arange(len(windows_MBT1)) < microbatches
    share = jnp.where(is_read_M, learned_share(windows_MBT1), 0).sum() / microbatches
    no_gradients = jax.tree.map(jnp.zeros_like, params)

    def trained_only(gradients):
        return select_trained_layers(gradients, no_gradients, experiment)

    def squares_of(before, after):
        if not experiment.train.noise_scale:
            return {}
        # Recomputed from the sums, so that XLA compiles the accumulation as it does without this.
        added = jax.tree.map(jnp.subtract, after, before)
        return small_squares(trained_only(added), parts)

    def add(index, sums):
        before, small = sums
        after = jax.tree.map(
            jnp.add, before, loss_and_gradients(params, windows_MBT1[index], share)
        )
        squares = squares_of(before[1], after[1])
        return after, jax.tree.map(jnp.add, small, squares)

    shapes = jax.eval_shape(lambda: loss_and_gradients(params, windows_MBT1[0], share))
    no_squares = jax.eval_shape(lambda: squares_of(params, params))
    zero = jax.tree.map(jnp.zeros_like, (shapes, no_squares))
    (scalars, gradients), small = jax.lax.fori_loop(0, microbatches, add, zero)
    scalars, gradients = jax.tree.map(
        lambda value: value / microbatches, (named(*scalars), gradients)
    )
    gradients = psum_replicated(gradients, parts)
    scalars = _psum_each(scalars)
    if experiment.train.noise_scale:
        tokens = windows_MBT1[0, :, 1:].size * axis_size("data", "fsdp")
        scalars |= estimate(small, trained_only(gradients), parts, tokens, microbatches)
    return scalars, gradients


def _psum_each(scalars: Metrics) -> Metrics:
    """Each summed over all devices."""
    return {name: psum(value, *AXES) for name, value in scalars.items()}


def compile_train_step(experiment: Experiment, mesh: Mesh) -> Callable[..., tuple]:
    """The jitted train step for this mesh; it donates its state argument.

    Runs that differ only in name, evaluation, and when they log, save and stop share the function
    within a process, so that it is traced and compiled once.
    """
    train = dataclasses.replace(
        experiment.train, steps=None, log_every=1, save_every=1, keep=1, patience=0
    )
    experiment = dataclasses.replace(experiment, name="_", train=train, evaluate=Evaluate())
    return _jitted(experiment, mesh, first_stage_size(mesh), window_loss, make_optimizer)


@lru_cache(maxsize=8)
def _jitted(
    experiment: Experiment, mesh: Mesh, first_stage: int, loss: Loss, _: Callable[..., object]
) -> Callable[..., tuple]:
    """The last argument is only part of the key: a notebook may have replaced `make_optimizer`."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(experiment, mesh))
    return jax.jit(
        partial(train_step, experiment=experiment, first_stage=first_stage, loss=loss),
        donate_argnames="state",
        out_shardings=(shardings, None),
        compiler_options=_compiler_options(mesh),
    )


def _compiler_options(mesh: Mesh) -> dict[str, int] | None:
    """Options of XLA for the train step.

    On GPUs: queries, keys and values stay three products. XLA of jaxlib 0.11 would join two of them
    and cut the result apart again, which is 5 GB of traffic in a step of GPT-3 Small.
    """
    if mesh.devices.flat[0].platform == "gpu":
        return {"xla_gpu_dot_merger_threshold_mb": 0}
    return fast_compile_options(mesh, level=2)


def layers_dtype(model: Model) -> str:
    """Dtype of the layers' matrix products in training: float32, bfloat16 or float8."""
    return model.dtype if model.dtype == "float8" else str(compute_dtype(model))
