"""What the stream would predict if the model ended there: the logit lens, after every layer.

The final norm and the head are applied to the stream between layers
(nostalgebraist 2020, "interpreting GPT: the logit lens"). After the last layer it
is what the model predicts; before, a reading of it, since the head was trained
for the end.

Legend: N layers, T tokens, D model width, V vocabulary, k guesses.
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
    """The likeliest next tokens at each position, [..., T]."""

    tokens: jax.Array
    """[..., k], likeliest first."""
    log_probability: jax.Array
    """Of each of them, nats, [..., k]."""
    entropy: jax.Array
    """Of the whole distribution, nats."""
    of_target: jax.Array
    """Log-probability of the token that is asked about, nats."""
    rank: jax.Array
    """How many tokens are likelier than it."""


@partial(jax.jit, static_argnames="model")
def lens(params: Params, x_TD: jax.Array, model: Model) -> jax.Array:
    """Logits [..., T, V] of the stream at any point; any dimensions may lead."""
    return unembed(head(params, model), x_TD, model)[..., : model.vocabulary]


@partial(jax.jit, static_argnames=("model", "count"))
def guesses(
    params: Params, x_TD: jax.Array, targets_T: jax.Array, model: Model, count: int
) -> Guesses:
    """Read the stream through the lens. Of one layer at a time: logits are T x V numbers.

    Args:
      params: as `table` describes.
      x_TD: the stream; any dimensions may lead.
      targets_T: int32, the token that is asked about at each position.
      model: its shape.
      count: k.
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
