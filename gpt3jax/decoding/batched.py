"""Decoding where each row is a text of its own: its own length, its own way of drawing.

Rows of unlike requests share one compiled step. What a row gets depends on its
own text, seed and position, never on which rows are beside it: token ids are
those of `decode.py` for a single row; log-probabilities agree to float32's
rounding, since products of other sizes add up in another order.

Legend: B rows, T prompt tokens, V vocabulary, N most likely tokens, H heads, S
slots of the cache, K head width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from gpt3jax.config import Model
from gpt3jax.decoding import decode
from gpt3jax.model.gpt3 import Cache, compute_dtype, hidden_states
from gpt3jax.model.init import Params
from gpt3jax.model.layers import unembed

BEST = 5
"""How many of the likeliest tokens are told with each token."""
SCORED = 256
"""Rows of logits that exist at a time while a prompt is scored."""


@struct.dataclass
class Drawing:
    """How each row draws its next token, arrays [B]."""

    seed: jax.Array
    """uint32."""
    sample: jax.Array
    """int32: which of its request's choices a row is."""
    position: jax.Array
    """int32: tokens of its whole text so far."""
    temperature: jax.Array
    top_p: jax.Array
    is_scored: jax.Array
    """Whether log-probabilities are wanted; where no row wants them, they are zero."""


@struct.dataclass
class Drawn:
    """The next token of each row."""

    token: jax.Array
    """int32 [B]."""
    log_probability: jax.Array
    """Of the token, in the model's own distribution; nats [B]."""
    best: jax.Array
    """int32 [B, N], the likeliest first."""
    best_log_probability: jax.Array
    """[B, N]."""


def draw_each(logits_BV: jax.Array, how: Drawing, vocabulary: int | None = None) -> Drawn:
    """Draw as `decode.draw` does, each row in its own way."""
    token_B = decode.sample_rows(
        decode.tokenizer_logits(logits_BV, vocabulary),
        decode.row_keys(how.seed, how.position, how.sample), how.temperature, how.top_p,
    )  # fmt: skip

    def nothing(logits_BV, token_B):
        return jax.tree.map(jnp.zeros_like, jax.eval_shape(_scored, logits_BV, token_B))

    _, *scores = jax.lax.cond(how.is_scored.any(), _scored, nothing, logits_BV, token_B)
    return Drawn(token_B, *scores)


def _scored(logits_BV: jax.Array, token_B: jax.Array) -> tuple[jax.Array, ...]:
    """The fields of `Drawn`."""
    log_BV = jax.nn.log_softmax(logits_BV, -1)
    own_B = jnp.take_along_axis(log_BV, token_B[:, None], -1)[:, 0]
    best_log_BN, best_BN = jax.lax.top_k(log_BV, BEST)
    return token_B, own_B, best_BN, best_log_BN


def step(
    params: Params,
    cache: Cache,
    token_B: jax.Array,
    how: Drawing,
    model: Model,
    vocabulary: int | None = None,
) -> tuple[Drawn, Cache]:
    """Read a token per row and draw the one after it: one compiled step."""
    logits_BV, cache = decode.decode(params, cache, token_B, model)
    return draw_each(logits_BV, how, vocabulary), cache


def place_row(cache: Cache, one: Cache, row: jax.Array) -> Cache:
    """The cache with its row replaced by the only one of another, which may have fewer slots."""

    def placed(all_BHSK, one_1HSK):
        return jax.lax.dynamic_update_slice_in_dim(all_BHSK, one_1HSK, row, axis=0)

    keys, values = jax.tree.map(placed, (cache.keys, cache.values), (one.keys, one.values))
    return cache.replace(keys=keys, values=values)


def empty(model: Model, rows: int, slots: int) -> Cache:
    """A cache of rows that have read nothing."""
    shape = (rows, model.n_heads, slots, model.d_head)
    arrays = tuple(jnp.zeros(shape, compute_dtype(model)) for _ in range(model.n_layers))
    return Cache(arrays, jax.tree.map(jnp.copy, arrays), jnp.zeros(rows, jnp.int32))


def resized(cache: Cache, rows: jax.Array, slots: int) -> Cache:
    """The cache of these rows, in this order, with more or fewer slots; what fills them stays."""

    def fit(all_BHSK):
        kept_BHSK = jnp.take(all_BHSK, rows, axis=0)[:, :, :slots]
        room = slots - kept_BHSK.shape[2]
        return jnp.pad(kept_BHSK, ((0, 0), (0, 0), (0, room), (0, 0)))

    return Cache(tuple(map(fit, cache.keys)), tuple(map(fit, cache.values)), cache.length[rows])


def score(params: Params, tokens_1T: jax.Array, model: Model) -> Drawn:
    """Each token of a text but the first, as if drawn after those before it: rows T - 1."""
    x_1TD, _, _ = hidden_states(params, tokens_1T, model)

    def of(both):
        x_D, token = both
        logits_1V = unembed(params, x_D[None, None], model)[0, :, : model.vocabulary]
        return Drawn(*(each[0] for each in _scored(logits_1V, token[None])))

    return jax.lax.map(of, (x_1TD[0, :-1], tokens_1T[0, 1:]), batch_size=SCORED)
