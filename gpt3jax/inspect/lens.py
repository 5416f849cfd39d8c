"""The logit lens: predictions from the residual stream after each layer.

The final norm and the head are applied to the residual stream between layers (nostalgebraist 2020,
"interpreting GPT: the logit lens"). After the last layer this gives the model's predictions;
before, it is an approximation, because the head was trained on the output of the last layer.

Legend: N layers, T tokens, D model width, V vocabulary, k predictions.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from gpt3jax.config import Model
from gpt3jax.model.gpt3 import head
from gpt3jax.model.init import Params
from gpt3jax.model.layers import unembed


@struct.dataclass
class Guesses:
    """The most likely next tokens at each position, [..., T]."""

    tokens: jax.Array
    """[..., k], most likely first."""
    log_probability: jax.Array
    """Their logprobs, nats, [..., k]."""
    entropy: jax.Array
    """Entropy of the distribution over the vocabulary, nats."""
    of_target: jax.Array
    """Logprob of the target token, nats."""
    rank: jax.Array
    """Number of tokens more likely than the target."""


@partial(jax.jit, static_argnames="model")
def lens(params: Params, x_TD: jax.Array, model: Model) -> jax.Array:
    """Logits [..., T, V] of the residual stream [..., T, D]."""
    return unembed(head(params, model), x_TD, model)[..., : model.vocabulary]


@partial(jax.jit, static_argnames=("model", "count"))
def guesses(
    params: Params, x_TD: jax.Array, targets_T: jax.Array, model: Model, count: int
) -> Guesses:
    """Predictions from the residual stream; use one layer at a time, since logits are [T, V].

    Args:
      params: parameters as in `param_specs`.
      x_TD: the residual stream [..., T, D].
      targets_T: int32 target tokens [..., T].
      model: the model.
      count: number of predictions k.
    """
    log_p_TV = jax.nn.log_softmax(lens(params, x_TD, model), axis=-1)
    best_Tk, tokens_Tk = jax.lax.top_k(log_p_TV, count)
    of_target_T = jnp.take_along_axis(log_p_TV, targets_T[..., None], axis=-1)[..., 0]
    return Guesses(
        tokens=tokens_Tk,
        log_probability=best_Tk,
        entropy=-(jnp.exp(log_p_TV) * log_p_TV).sum(-1),
        of_target=of_target_T,
        rank=(log_p_TV > of_target_T[..., None]).sum(-1),
    )
