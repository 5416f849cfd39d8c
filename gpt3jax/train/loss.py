"""Mean next-token cross-entropy, in nats per token.

Legend: B batch, T tokens, V vocabulary (padded).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gpt3jax.config import Model
from gpt3jax.model.gpt3 import forward
from gpt3jax.model.params import Params


def token_losses(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """-log p(target) at each position, float32 [B, T]."""
    target_BT1 = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)
    return jax.nn.logsumexp(logits_BTV, axis=-1) - target_BT1[..., 0]


def window_loss(params: Params, windows_BT1: jax.Array, model: Model) -> jax.Array:
    """Mean loss over windows of context+1 tokens: each token is predicted from those before it."""
    logits_BTV = forward(params, windows_BT1[:, :-1], model).logits
    return token_losses(logits_BTV, windows_BT1[:, 1:]).mean()
