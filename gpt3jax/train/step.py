"""One training step as a pure function, compiled once.

Loss and gradients are computed by each device on its part of the batch and the
parameters (sharding/collectives.py); the update is elementwise, wherever a
parameter lies.

Legend: M microbatches, B windows in one, T context.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from gpt3jax.config import Experiment, Model
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


def train_step(
    state: TrainState,
    windows_MBT1: jax.Array,
    microbatches: jax.Array,
    learning_rate: jax.Array,
    *,
    experiment: Experiment,
    first_stage: int = 1,
) -> tuple[TrainState, Metrics]:
    """Read a batch, return the corrected state.

    Args:
      state: before the step.
      windows_MBT1: int32 token windows; only the first `microbatches` count, and of the last
        of them only those that are no padding, so that the batch can grow by single windows
        without a new compilation.
      microbatches: int32 scalar, at least 1.
      learning_rate: float32 scalar.
      first_stage: devices of the first stage in which weights are gathered (mesh.py).

    Returns:
      The next state, and `loss` (nats/learned token) and `grad_norm` (of what is trained, before
      clipping); of several microbatches `grad_square` and `grad_variance`, too
      (monitor/noise_scale.py). Where either is not finite, the state is the one before.
    """
    parts, other_parts = partition(partition_specs(param_specs(experiment.model)), experiment)
    mean_gradients = shard_map(
        partial(_mean_gradients, experiment=experiment, parts=parts),
        in_specs=(parts, other_parts, partition_spec((None, "batch", None)), PartitionSpec()),
        out_specs=(PartitionSpec(), parts, PartitionSpec()),
        first_stage=first_stage,
    )
    params, others = partition(state.params, experiment)
    loss, gradients, noise = mean_gradients(params, others, windows_MBT1, microbatches)
    zeros = jax.tree.map(jnp.zeros_like, gradients)
    gradients = select_trained_layers(gradients, zeros, experiment)
    optimizer = make_optimizer(experiment)
    update, moments = optimizer.update(gradients, state.optimizer, params)
    updated = jax.tree.map(lambda p, u: p - learning_rate * u, params, update)
    # Weight decay moves all that it is given.
    updated = select_trained_layers(updated, params, experiment)
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradients), **noise}
    is_good = jnp.isfinite(loss) & jnp.isfinite(metrics["grad_norm"])
    after = TrainState(combine(updated, others), moments)
    return jax.tree.map(partial(jnp.where, is_good), after, state), metrics


def _mean_gradients(params, others, windows_MBT1, microbatches, experiment: Experiment, parts):
    """Loss and gradients by `params`, averaged over what is learned of the whole batch.

    And both sides of the noise scale, where the batch is in several microbatches.
    """

    def loss_of(part, windows_BT1, share=None):
        return window_loss(combine(part, others), windows_BT1, experiment.model, share)

    loss_and_gradients = jax.value_and_grad(loss_of)
    if windows_MBT1.shape[0] == 1:
        loss, gradients = loss_and_gradients(params, windows_MBT1[0])
        return psum(loss, *AXES), psum_replicated(gradients, parts), {}
    is_read_M = jnp.arange(len(windows_MBT1)) < microbatches
    share = jnp.where(is_read_M, learned_share(windows_MBT1), 0).sum() / microbatches
    no_gradients = jax.tree.map(jnp.zeros_like, params)

    def trained_only(gradients):
        return select_trained_layers(gradients, no_gradients, experiment)

    def add(index, sums):
        before, small = sums
        after = jax.tree.map(
            jnp.add, before, loss_and_gradients(params, windows_MBT1[index], share)
        )
        # Of what was added, so that XLA compiles the sums as if nobody else read the gradients.
        added = jax.tree.map(jnp.subtract, after[1], before[1])
        squares = small_squares(trained_only(added), parts)
        return after, jax.tree.map(jnp.add, small, squares)

    no_squares = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda: small_squares(params, parts)))
    zero = (jnp.zeros(()), no_gradients), no_squares
    (loss, gradients), small = jax.lax.fori_loop(0, microbatches, add, zero)
    loss, gradients = jax.tree.map(lambda value: value / microbatches, (loss, gradients))
    gradients = psum_replicated(gradients, parts)
    tokens = windows_MBT1[0, :, 1:].size * axis_size("data", "fsdp")
    noise = estimate(small, trained_only(gradients), parts, tokens, microbatches)
    return psum(loss, *AXES), gradients, noise


def compile_train_step(experiment: Experiment, mesh: Mesh) -> Callable[..., tuple]:
    """The jitted train step for this mesh; it consumes (donates) the state it is given."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(experiment, mesh))
    return jax.jit(
        partial(train_step, experiment=experiment, first_stage=first_stage_size(mesh)),
        donate_argnames="state",
        out_shardings=(shardings, None),
        compiler_options=fast_compile_options(mesh, level=2),
    )


def layers_dtype(model: Model) -> str:
    """What layers multiply in while they train, on the mesh in use: float32, bfloat16, float8."""
    return model.dtype if model.dtype == "float8" else str(compute_dtype(model))
