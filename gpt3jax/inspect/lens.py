"""The logit lens: predictions from the residual stream after each layer.

The final norm and the head are applied to the residual stream between layers (nostalgebraist 2020,
"interpreting GPT: the logit lens"). After the last layer this gives the model's predictions;
before, it is an approximation, because the head was trained on the output of the last layer.

Legend: N layers, T tokens, D model width, V vocabulary, k predictions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt3jax.config import Model
from gpt3jax.inspect.capture import of_layer
from gpt3jax.model.gpt3 import Output, head
from gpt3jax.model.init import Params
from gpt3jax.model.layers import unembed

GUESSES = 5


@partial(jax.jit, static_argnames="model")
def lens(params: Params, x_TD: jax.Array, model: Model) -> jax.Array:
    """Logits [..., T, V] of the residual stream [..., T, D]."""
    return unembed(head(params, model), x_TD, model)[..., : model.vocabulary]


@partial(jax.jit, static_argnames=("model", "count"))
def guesses(
    params: Params, x_TD: jax.Array, targets_T: jax.Array, model: Model, count: int
) -> dict[str, jax.Array]:
    """Predictions from the residual stream [..., T, D] and int32 target tokens [..., T].

    Use one layer at a time, since logits are [T, V].

    Returns:
      The k = `count` most likely `tokens` and their logprobs `log_p`, [..., T, k], most likely
      first; and, [..., T], the `entropy` of the distribution over the vocabulary, the logprob
      `target_log_p` of the target, and its `rank`, the number of more likely tokens. In nats.
    """
    log_p_TV = jax.nn.log_softmax(lens(params, x_TD, model), axis=-1)
    best_Tk, tokens_Tk = jax.lax.top_k(log_p_TV, count)
    target_log_p_T = jnp.take_along_axis(log_p_TV, targets_T[..., None], axis=-1)[..., 0]
    return {
        "tokens": tokens_Tk,
        "log_p": best_Tk,
        "entropy": -(jnp.exp(log_p_TV) * log_p_TV).sum(-1),
        "target_log_p": target_log_p_T,
        "rank": (log_p_TV > target_log_p_T[..., None]).sum(-1),
    }


def lens_record(
    params: Params,
    output: Output,
    targets: np.ndarray,
    model: Model,
    on_progress: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """The most likely tokens after the embedding and after each layer, for section 3 of the page.

    `output` is that of one text, of which `embedded` and `residual` were captured; `targets` are
    the tokens that follow each token, int [T].

    Returns:
      `tokens`, `p` [N + 1, T, k]; `entropy`, `loss` (of the following token, nats) and `rank`
      [N + 1, T]; and `appears` [T], the number of layers after which the first guess is final.
    """
    activations, rows = output.activations, []
    targets_T, count = jnp.asarray(targets, jnp.int32), min(GUESSES, model.vocabulary)
    layers = (of_layer(activations["residual"], layer) for layer in range(model.n_layers))
    for x_TD in (activations["embedded"][0], *layers):  # One at a time, since logits are [T, V].
        rows.append(jax.tree.map(np.asarray, guesses(params, x_TD, targets_T, model, count)))
        on_progress(len(rows) / (model.n_layers + 1))
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    tokens = stacked["tokens"].astype(np.uint32)
    return {
        "tokens": tokens,
        "p": np.exp(stacked["log_p"]),
        "entropy": stacked["entropy"],
        "loss": -stacked["target_log_p"],
        "rank": stacked["rank"].astype(np.int32),
        "appears": appears(tokens[..., 0]),
    }


def appears(first_guess: np.ndarray) -> np.ndarray:
    """The first row from which on the guess equals that of the last row: [rows, T] -> int32 [T].

    >>> appears(np.array([[7, 1], [5, 2], [7, 2], [7, 2]])).tolist()
    [2, 1]
    """
    same = first_guess == first_guess[-1]
    return (len(same) - np.cumprod(same[::-1], axis=0).sum(0)).astype(np.int32)
