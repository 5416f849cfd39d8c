"""Mean next-token cross-entropy, in nats per learned token.

A token of a window that is read but not learned (part of a prompt, or padding) is stored as ~id,
which is negative (data/pairs.py). In pre-training all tokens are learned.

The head and the loss are computed together for R rows at a time, so that logits exist only until
their gradient is known. For 16 windows of 2048 tokens and the paper's vocabulary all logits would
take 6.6 GB, and their gradient as much again.

Legend: B batch, T tokens (this device's, if `tensor` shards them), M = B * T rows, R rows at a
time, D model width, V vocabulary (padded; this device's shard).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from gpt3jax.config import Model
from gpt3jax.model.gpt3 import head, hidden_states
from gpt3jax.model.init import Params
from gpt3jax.model.layers import last_norm
from gpt3jax.model.logprobs import in_rows, logits_of, scores_of
from gpt3jax.sharding.collectives import all_gather, axis_index, axis_size, psum, reduce_scatter


def window_loss(
    params: Params, windows_BT1: jax.Array, model: Model, share: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean loss over windows of context + 1 tokens; each token is predicted from its prefix.

    On a mesh each device returns its share, and the sum over all devices is the mean loss.

    Args:
      params: parameters as described by `param_specs`.
      windows_BT1: int32, this device's windows.
      model: the model's configuration.
      share: the fraction of targets that is learned; by default that of these windows. With
        gradient accumulation it is the mean over the microbatches, so that all learned tokens have
        the same weight.

    Returns:
      The loss, nats per learned token, and a dictionary of further float32 scalars, which are
      summed over devices, averaged over microbatches and logged (docs/extending.md adds one).
    """
    x_BTD, _, _ = hidden_states(params, tokens_read(windows_BT1[:, :-1]), model)
    with jax.named_scope("unembed"):
        top = head(params, model)
        x_BTD = last_norm(top, x_BTD, model)
        T = x_BTD.shape[1]
        targets_BT = jax.lax.dynamic_slice_in_dim(windows_BT1, 1 + axis_index("tensor") * T, T, 1)
        targets_M = targets_BT.reshape(-1)
        loss: Any = head_loss(
            x_BTD.reshape(-1, model.d_model), top["token_embedding"], targets_M, model.vocabulary
        )
    # Devices along `tensor` took part in each other's rows, and each has the whole sum.
    loss = loss / (len(targets_M) * axis_size("data", "fsdp", "tensor") * axis_size("tensor"))
    return loss / (learned_share(windows_BT1) if share is None else share), {}


def learned_share(windows_BT1: jax.Array) -> jax.Array:
    """Fraction of the targets on all devices that is learned, float32; 1 in pre-training.

    For microbatches [M, B, context + 1], one value each.
    """
    is_learned_BT = windows_BT1[..., 1:] >= 0
    # Devices along `tensor` have the same windows.
    targets = math.prod(is_learned_BT.shape[-2:]) * axis_size("data", "fsdp")
    return psum(is_learned_BT.sum((-2, -1)), "data", "fsdp") / targets


def tokens_read(windows: jax.Array) -> jax.Array:
    """The token ids of windows, learned or not."""
    return jnp.where(windows < 0, ~windows, windows)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def head_loss(x_MD: jax.Array, w_VD: jax.Array, targets_M: jax.Array, vocabulary: int) -> jax.Array:
    """Sum of -log p(target), float32, over the rows of all devices along `tensor`.

    Negative targets are not learned and contribute nothing.
    """

    def add(loss, rows):
        x_RD, targets_R = (all_gather(part, "tensor", 0) for part in rows)
        losses_R, _ = _losses(x_RD, w_VD, targets_R, vocabulary)
        return loss + losses_R.sum(), None

    return jax.lax.scan(add, jnp.zeros(()), in_rows(x_MD, targets_M))[0]


def _head_loss_forward(x_MD, w_VD, targets_M, vocabulary):
    """The loss, and its gradients up to the scalar cotangent, which the backward pass applies."""

    def add(sums, rows):
        loss, dw_VD = sums
        x_RD, targets_R = (all_gather(part, "tensor", 0) for part in rows)
        losses_R, dlogits_RV = _losses(x_RD, w_VD, targets_R, vocabulary)
        dw_VD = dw_VD + jnp.matmul(dlogits_RV.T, x_RD, preferred_element_type=jnp.float32)
        return (loss + losses_R.sum(), dw_VD), reduce_scatter(dlogits_RV @ w_VD, "tensor", 0)

    zero = (jnp.zeros(()), jnp.zeros(w_VD.shape, jnp.float32))
    (loss, dw_VD), dx = jax.lax.scan(add, zero, in_rows(x_MD, targets_M))
    return loss, (dx.reshape(x_MD.shape), dw_VD.astype(w_VD.dtype))


def _head_loss_backward(vocabulary, residuals, dloss):
    # Every device along `tensor` has the complete loss, with the same cotangent.
    scale = dloss * axis_size("tensor")
    return *((scale * d).astype(d.dtype) for d in residuals), None


head_loss.defvjp(_head_loss_forward, _head_loss_backward)


def _losses(x_RD, w_VD, targets_R, vocabulary):
    """-log p(target) of each row, and its gradient with respect to this device's logits.

    Logits are stored in the dtype of the activations, as PyTorch's autocast stores them, and the
    softmax is computed in float32. Float32 logits would be read and written at twice the cost,
    which is 4 % of a step of GPT-3 Small on an H200. Evaluation has float32 logits.
    """
    logits_RV = logits_of(x_RD, w_VD, vocabulary, x_RD.dtype)
    scores, probability_RV, is_target_RV = scores_of(logits_RV, targets_R)
    is_learned_R = targets_R >= 0
    losses_R = jnp.where(is_learned_R, -scores.log_probability, 0)
    dlogits_RV = jnp.where(is_learned_R[:, None], probability_RV - is_target_RV, 0)
    return losses_R, dlogits_RV.astype(x_RD.dtype)
