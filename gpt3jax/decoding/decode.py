"""Generation, one token at a time: prefill the prompt, then decode with cached keys and values.

Pure functions over arrays; generate.py turns text into tokens and back.

Legend: B rows (samples or beams), T prompt tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gpt3jax.config import Model, Weights
from gpt3jax.errors import ConfigError
from gpt3jax.model.gpt3 import Cache, compute_dtype, forward, hidden_states
from gpt3jax.model.init import Params
from gpt3jax.model.layers import unembed, unstack
from gpt3jax.model.lora import merge_lora
from gpt3jax.model.quantized import quantize

CPU_OPTIONS = {
    # Without it the whole cache is copied every token.
    "xla_cpu_copy_insertion_use_region_analysis": True,
    # Products of one row are XLA's own loops: a fifth faster on all of AVX-512, where it is there.
    "xla_cpu_prefer_vector_width": 512,
}
"""How XLA's CPU backend should compile a step."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from the model's distribution."""

    temperature: float = 1.0
    """0 takes the most likely token."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the fewest tokens whose probability adds up to this."""

    def __post_init__(self) -> None:
        if not (self.temperature == 0 or 1e-6 <= self.temperature < float("inf")):
            raise ConfigError(
                f"--temperature is {self.temperature}: it must be 0, or 1e-6 or more. Change it"
            )
        if self.top_k < 0:
            raise ConfigError(f"--top-k is {self.top_k}: it must be 0 or more. Change it")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p is {self.top_p}: it must be above 0, at most 1. Change it")


def decoding_params(params: Params, model: Model, weights: Weights | None = None) -> Params:
    """The parameters as decoding wants them: LoRA's changes in their kernels, cast once, layers in
    a list (no slicing per token), matrices packed as `weights` says; None, which is best for
    reading many tokens at a time and goes on meshes, leaves them arrays."""
    params, _ = merge_lora(params, model)
    params = jax.tree.map(lambda leaf: leaf.astype(compute_dtype(model)), params)
    layers = unstack(params["layers"], model.n_layers)
    params = {**params, "layers": layers}
    return params if weights is None else quantize(params, weights)


def prefill(
    params: Params,
    tokens_BT: jax.Array,
    length: jax.Array,
    model: Model,
    slots: int | None = None,
    prefix: Cache | None = None,
) -> tuple[jax.Array, Cache]:
    """Read prompts, padded on the right to T tokens.

    Padding leaves no trace: its keys lie beyond the cache's length and are overwritten.

    Args:
      params: as `decoding_params` returns them.
      tokens_BT: int32 token ids.
      length: int32, the tokens of each prompt: [B], or a scalar where all have one length.
      model: the shape of the model.
      slots: tokens that the cache has room for, of which each decoding step reads all;
        `model.context` by default.
      prefix: a cache of one row that has read what all prompts begin with; `tokens_BT` and
        `length` are then those of the rest.

    Returns:
      Float32 logits [B, V] after the last token of each prompt, and the cache.
    """
    slots = slots or model.context

    def with_room(keys_BHSK):
        kept = keys_BHSK[:, :, :slots]
        return jnp.pad(kept, ((0, 0), (0, 0), (0, slots - kept.shape[2]), (0, 0)))

    if prefix is None:
        x_BTD, _, found = hidden_states(params, tokens_BT, model, want=("keys", "values"))
        keys, values = (
            tuple(with_room(new_BTHK.transpose(0, 2, 1, 3)) for new_BTHK in found[name])
            for name in ("keys", "values")
        )
        cache = Cache(keys, values, length)
    else:
        keys, values = jax.tree.map(
            lambda one_1HSK: jnp.repeat(with_room(one_1HSK), len(tokens_BT), axis=0),
            (prefix.keys, prefix.values),
        )
        # Given explicitly, since padding may reach beyond the last position.
        positions_BT = jnp.broadcast_to(
            prefix.length + jnp.arange(tokens_BT.shape[1]), tokens_BT.shape
        )
        x_BTD, cache, _ = hidden_states(
            params, tokens_BT, model, cache=Cache(keys, values, prefix.length),
            positions_BT=positions_BT,
        )  # fmt: skip
        cache = cache.replace(length=prefix.length + length)
    if length.ndim:
        last_B1D = jnp.take_along_axis(x_BTD, (length - 1)[:, None, None], axis=1)
    else:
        last_B1D = jax.lax.dynamic_slice_in_dim(x_BTD, length - 1, 1, axis=1)
    return unembed(params, last_B1D, model)[:, 0, : model.vocabulary], cache


def decode(
    params: Params, cache: Cache, token_B: jax.Array, model: Model
) -> tuple[jax.Array, Cache]:
    """Read one more token per row; return the next logits [B, V] and the longer cache."""
    output = forward(params, token_B[:, None], model, cache=cache)
    return output.logits[:, 0, : model.vocabulary], output.cache


def sample(logits_BV: jax.Array, keys_B: jax.Array, sampling: Sampling) -> jax.Array:
    """Draw a token per row, int32 [B]; each row with its own key."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, -1).astype(jnp.int32)
    kept = truncate(logits_BV / sampling.temperature, sampling)
    return _categorical(keys_B, kept)


def _categorical(keys_B: jax.Array, logits_BV: jax.Array) -> jax.Array:
    """`jax.random.categorical` of each row with its own key."""
    V = logits_BV.shape[-1]
    noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, (V,), logits_BV.dtype))(keys_B)
    # Of `argmax` XLA's CPU backend would compute the noise inside the search, one by one: four
    # times as long (8 rows of 2,048, 2 cores, jax 0.10.2).
    return jax.lax.top_k(logits_BV + noise_BV, 1)[1][:, 0]


def truncate(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """Set the logits outside top-k, then outside top-p of the rest, to -inf."""
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        smallest_B1 = jax.lax.top_k(logits_BV, sampling.top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < smallest_B1, -jnp.inf, logits_BV)
    return logits_BV if sampling.top_p == 1 else _nucleus(logits_BV, sampling.top_p)


def _nucleus(logits_BV: jax.Array, top_p: jax.Array | float) -> jax.Array:
    """Top-p alone; one for all rows, or [B, 1]."""
    sorted_BV = jnp.sort(logits_BV, -1, descending=True)
    probability_BV = jax.nn.softmax(sorted_BV, -1)
    before_BV = jnp.cumsum(probability_BV, -1) - probability_BV
    kept_B = jnp.sum(before_BV < top_p, -1)
    smallest_B1 = jnp.take_along_axis(sorted_BV, kept_B[:, None] - 1, -1)
    return jnp.where(logits_BV < smallest_B1, -jnp.inf, logits_BV)


def row_keys(seed: jax.Array, position: jax.Array, row: jax.Array) -> jax.Array:
    """A key per row, made of seed, row and position; each is [B], or one for all rows."""

    def key(seed, position, row):
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), position), row)

    return jax.vmap(key)(*jnp.broadcast_arrays(seed, position, row))


def sample_rows(
    logits_BV: jax.Array, keys_B: jax.Array, temperature_B: jax.Array, top_p_B: jax.Array
) -> jax.Array:
    """`sample`, each row in its own way; what no row asks for is not computed."""

    def nucleus(scaled_BV):
        return jnp.where(top_p_B[:, None] < 1, _nucleus(scaled_BV, top_p_B[:, None]), scaled_BV)

    def drawn():
        scaled_BV = logits_BV / jnp.where(temperature_B > 0, temperature_B, 1)[:, None]
        kept_BV = jax.lax.cond((top_p_B < 1).any(), nucleus, lambda same: same, scaled_BV)
        return _categorical(keys_B, kept_BV)

    def likeliest():
        return jnp.argmax(logits_BV, -1).astype(jnp.int32)

    is_drawn_B = temperature_B > 0
    tokens_B = jax.lax.cond(is_drawn_B.any(), drawn, likeliest)
    return jax.lax.cond(
        is_drawn_B.all(), lambda: tokens_B, lambda: jnp.where(is_drawn_B, tokens_B, likeliest())
    )


def tokenizer_logits(values_BV: jax.Array, vocabulary: int | None) -> jax.Array:
    """Logits or log-probabilities of the tokens that may be written; None: of all rows.

    A model may have more embedding rows than its tokenizer has tokens. Everywhere in this package
    a probability is over all rows of the model's vocabulary, as transformers computes it: in
    perplexity, evaluation, the harness, beam search and the scores of served tokens. Rows that
    have no token are only excluded when a token is chosen to be written, and only here.
    """
    return values_BV[..., :vocabulary]


def draw(
    logits_BV: jax.Array,
    seed: jax.Array,
    position: jax.Array,
    sampling: Sampling,
    vocabulary: int | None = None,
) -> jax.Array:
    """Sample; the key is made of seed, row and position, never of how many rows there are."""
    keys_B = row_keys(seed, position, jnp.arange(len(logits_BV)))
    return sample(tokenizer_logits(logits_BV, vocabulary), keys_B, sampling)


def next_token(
    params: Params,
    cache: Cache,
    token_B: jax.Array,
    seed: jax.Array,
    position: jax.Array,
    model: Model,
    sampling: Sampling,
    vocabulary: int | None = None,
) -> tuple[jax.Array, Cache]:
    """Read a token per row and draw the one after it, at `position`: one compiled step."""
    logits_BV, cache = decode(params, cache, token_B, model)
    return draw(logits_BV, seed, position, sampling, vocabulary), cache


def take_cache_rows(cache: Cache, rows: jax.Array) -> Cache:
    """The cache of these rows, in this order; a row may be taken more than once."""
    return jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0) if leaf.ndim else leaf, cache)
