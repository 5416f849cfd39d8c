"""Beam search (section 2.4: width 4, length penalty 0.6), many prompts at once, in one program.

Of width 1 it is greedy decoding. All beams of a prompt are one row of the cache: the prompt is
stored and read once for all of them, and each beam sees only the tokens that it continues.

Legend: B prompts, W beams of each, N tokens written at most, S slots of the cache, V vocabulary.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from gpt3jax.config import Model
from gpt3jax.decoding.decode import tokenizer_logits
from gpt3jax.model.gpt3 import Cache, forward
from gpt3jax.model.init import Params


@struct.dataclass
class Found:
    """The best continuations of each prompt, best first; those not found score -inf."""

    tokens: jax.Array
    """int32 [B, W, N]; what follows the first `length` means nothing."""
    length: jax.Array
    """int32 [B, W], without the token that ended it."""
    log_probability: jax.Array
    """Sum over its tokens, the one that ended it included; nats [B, W]."""
    score: jax.Array
    """log_probability over the length penalty, [B, W]."""


@struct.dataclass
class _Search:
    """Where a search stands after `step` tokens."""

    step: jax.Array
    tokens: jax.Array
    """[B, W, N] of the beams that go on."""
    totals: jax.Array
    """[B, W]: their log-probabilities; -inf where there is none."""
    writer: jax.Array
    """[B, W, N]: which beam of its step wrote each of their tokens."""
    found: Found
    ended: jax.Array
    """[B]: continuations that ended so far."""


def length_penalty(length: int | jax.Array, alpha: float) -> jax.Array:
    """((5 + length) / 6) ** alpha (Wu et al. 2016, equation 14); the paper uses alpha 0.6."""
    return ((5.0 + length) / 6.0) ** alpha


def search(
    params: Params,
    logits_BV: jax.Array,
    cache: Cache,
    is_end_V: jax.Array,
    model: Model,
    *,
    new_tokens: int,
    width: int,
    alpha: float,
    limit: jax.Array | None = None,
) -> Found:
    """Continue prompts that have been read.

    A beam ends with a token of `is_end_V`, or after `limit`. A prompt's
    search is over when as many of its continuations have ended as there are
    beams.

    Args:
      params: as `decoding_params` gives them.
      logits_BV: after each prompt.
      cache: the prompts; what the beams write lies behind all of its slots.
      is_end_V: boolean, of each token that may be written: whether it ends an answer.
      model: its shape.
      new_tokens: N.
      width: W.
      alpha: of the length penalty.
      limit: tokens written at most; `new_tokens` if not given. One program does for all.
    """
    B, W, N = len(logits_BV), width, new_tokens
    limit = jnp.int32(N) if limit is None else limit
    none_BW = jnp.full((B, W), -jnp.inf)
    tokens_BWN, zeros_BW = jnp.zeros((B, W, N), jnp.int32), jnp.zeros((B, W), jnp.int32)
    begin = _Search(
        step=jnp.int32(0), tokens=tokens_BWN, totals=none_BW.at[:, 0].set(0.0), writer=tokens_BWN,
        found=Found(tokens_BWN, zeros_BW, none_BW, none_BW), ended=jnp.zeros(B, jnp.int32),
    )  # fmt: skip
    choose = partial(_choose, is_end_V=is_end_V, alpha=alpha, limit=limit)
    length_B, filled = jnp.broadcast_to(cache.length, B), cache.keys[0].shape[2]
    room = ((0, 0), (0, 0), (0, W * N), (0, 0))
    keys, values = jax.tree.map(lambda x: jnp.pad(x, room), (cache.keys, cache.values))
    cache = Cache(keys, values, jnp.int32(filled))

    def is_going(state: tuple[_Search, Cache]) -> jax.Array:
        now, _ = state
        return (now.step < limit) & (now.ended < W).any()

    def go(state: tuple[_Search, Cache]) -> tuple[_Search, Cache]:
        now, cache = state
        distance_BWS = _distance(now, length_B, filled, cache.keys[0].shape[2])
        positions_BW = jnp.broadcast_to((length_B + now.step - 1)[:, None], (B, W))
        output = forward(
            params, now.tokens[:, :, now.step - 1], model,
            cache=cache.replace(distance=distance_BWS), positions_BT=positions_BW,
        )  # fmt: skip
        return choose(now, output.logits[..., : model.vocabulary]), output.cache

    first_BWV = jnp.broadcast_to(logits_BV[:, None], (B, W, logits_BV.shape[-1]))
    end, _ = jax.lax.while_loop(is_going, go, (choose(begin, first_BWV), cache))
    return end.found


def _distance(now: _Search, length_B: jax.Array, filled: int, slots: int) -> jax.Array:
    """`Cache.distance` [B, W, S + W] of the newest tokens; a step writes W slots from `filled`."""
    B, W, N = now.tokens.shape
    past = now.step - 1
    step_S, beam_S = jnp.divmod(jnp.arange(slots) - filled, W)
    is_prompt_B1S = jnp.arange(slots) < length_B[:, None, None]
    to_prompt_B1S = length_B[:, None, None] + past - jnp.arange(slots)
    to_prompt_BWS = jnp.where(is_prompt_B1S, to_prompt_B1S, -1)
    writer_BWS = jnp.take(now.writer, jnp.clip(step_S, 0, N - 1), axis=2)
    to_written_BWS = jnp.where((writer_BWS == beam_S) & (step_S < past), past - step_S, -1)
    old_BWS = jnp.where(step_S < 0, to_prompt_BWS, to_written_BWS)
    own_BWW = jnp.broadcast_to(jnp.eye(W, dtype=old_BWS.dtype) - 1, (B, W, W))
    return jnp.concatenate((old_BWS, own_BWW), axis=2)


def _choose(
    now: _Search, logits_BWV: jax.Array, is_end_V: jax.Array, alpha: float, limit: jax.Array
) -> _Search:
    """One more token for each beam: which end, and which go on."""
    B, W, N = now.tokens.shape
    take = partial(jnp.take_along_axis, axis=1)
    # Twice the beams are taken, so that as many go on though others end.
    log_BWV = tokenizer_logits(jax.nn.log_softmax(logits_BWV, -1), len(is_end_V))
    totals, origins, tokens = _best(log_BWV, now.totals)
    written = take(now.tokens, origins[..., None]).at[:, :, now.step].set(tokens)
    is_end, is_open = is_end_V[tokens], (now.ended < W)[:, None]
    ends = is_end & (jnp.arange(2 * W) < W) & is_open & (totals > -jnp.inf)
    ended = now.ended + ends.sum(1, dtype=jnp.int32)
    goes_on = ~is_end & (jnp.cumsum(~is_end, 1) <= W)
    # With its last token a beam is over, unless enough have ended before it.
    is_cut = goes_on & (now.step == limit - 1) & (ended < W)[:, None]
    more = Found(
        tokens=written,
        length=now.step + (~is_end).astype(jnp.int32),
        log_probability=totals,
        score=jnp.where(
            ends | is_cut, totals / length_penalty(now.step + 1, alpha), -jnp.inf
        ),
    )  # fmt: skip
    order = jnp.argsort(~goes_on, axis=1, stable=True)[:, :W]
    return _Search(
        step=now.step + 1,
        tokens=take(written, order[..., None]),
        totals=jnp.where(take(goes_on, order), take(totals, order), -jnp.inf),
        writer=take(now.writer, take(origins, order)[..., None])
        .at[:, :, now.step]
        .set(jnp.arange(W)),
        found=_best_of(now.found, more, W),
        ended=ended,
    )


def _best(log_BWV: jax.Array, totals_BW: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The 2 x W best continuations by one token: [B, 2W] totals, beams continued, tokens."""
    B, W, V = log_BWV.shape
    totals_BWV = totals_BW[..., None] + log_BWV
    best, flat = jax.lax.top_k(totals_BWV.reshape(B, W * V), 2 * W)
    return best, flat // V, flat % V


def _best_of(found: Found, more: Found, width: int) -> Found:
    """The best of both by score."""
    both = jax.tree.map(lambda a, b: jnp.concatenate((a, b), axis=1), found, more)
    _, order = jax.lax.top_k(both.score, width)
    return jax.tree.map(
        lambda each: jnp.take_along_axis(
            each, order.reshape(*order.shape, *(1,) * (each.ndim - 2)), axis=1
        ),
        both,
    )
