"""Ids, positions and slots that are not there give NaN or an error, on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt3jax.config import Mesh
from gpt3jax.decoding import decode
from gpt3jax.inspect.capture import capture
from gpt3jax.model.gpt3 import forward
from gpt3jax.model.param_specs import param_specs
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.sharding.rules import param_shardings

UNKNOWN = (300, 383, 384, 2**31 - 1, -1, -300, -301, -(2**31))
"""Of 300 tokens, padded to 384 rows."""


@pytest.mark.parametrize("sizes", [(1, 1, 1), (8, 1, 1), (1, 8, 1), (1, 1, 4), (2, 2, 2)])
@pytest.mark.in_ci("sizes0", "sizes4")
def test_an_unknown_id_makes_its_row_nan_on_every_mesh(model, params, sizes):
    """And no other row: those are numpy's sum of the embeddings."""
    assert model.vocabulary == 300 and model.padded_vocabulary == 384
    tokens = np.random.default_rng(0).integers(0, 300, (1 + len(UNKNOWN), 8)).astype(np.int32)
    tokens[0, :2] = 0, 299
    tokens[1:, 3] = UNKNOWN
    mesh = make_mesh(Mesh(*sizes), jax.devices()[: int(np.prod(sizes))])
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, param_shardings(param_specs(model), mesh))
        output = capture(placed, jnp.asarray(tokens), model, want=("embedded",))
    embedded = np.asarray(output.activations["embedded"])
    rows, positions = (np.asarray(params[f"{of}_embedding"]) for of in ("token", "position"))
    known = (tokens >= 0) & (tokens < 300)
    expected = rows[np.where(known, tokens, 0)] + positions[:8]
    expected[~known] = np.nan
    np.testing.assert_allclose(embedded, expected, rtol=1e-6)
    is_finite = np.isfinite(np.asarray(output.logits)).all((1, 2))
    assert is_finite.tolist() == [True] + [False] * len(UNKNOWN)


@pytest.mark.parametrize("weights", ["full", "bfloat16", "int8"])
def test_an_unknown_id_makes_its_row_nan_in_packed_matrices(model, params, weights):
    ready = decode.decoding_params(params, model, weights)
    tokens = jnp.full((1 + len(UNKNOWN), 4), 299).at[1:, 2].set(jnp.array(UNKNOWN))
    logits, _ = jax.jit(decode.prefill, static_argnums=3)(ready, tokens, jnp.int32(4), model)
    assert jnp.isfinite(logits).all(1).tolist() == [True] + [False] * len(UNKNOWN)


def test_what_a_cache_has_no_room_for_gives_nan_and_not_the_last_slot_again(model, params):
    """By slots that are fewer than the context, and by positions that are fewer than the slots."""
    ready, step = decode.decoding_params(params, model), jax.jit(decode.decode, static_argnums=3)
    text = jnp.zeros((2, 8), jnp.int32)
    for slots in (10, 60):
        most = min(slots, model.context)
        logits, cache = decode.prefill(ready, text, jnp.int32(8), model, slots)
        cache = cache.replace(length=jnp.int32(most - 1))
        logits, cache = step(ready, cache, jnp.zeros(2, jnp.int32), model)
        assert jnp.isfinite(logits).all()
        logits, cache = step(ready, cache, jnp.zeros(2, jnp.int32), model)
        assert jnp.isnan(logits).all()


def test_a_text_longer_than_the_context_is_refused(model, params):
    with pytest.raises(ValueError, match=r"a text of 49 tokens has more than .* \(48\)"):
        forward(params, jnp.zeros((1, 49), jnp.int32), model)
    mesh = make_mesh(Mesh(1, 1, 4), jax.devices()[:4])
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=r"of 52 tokens .* \(48\)"):
        capture(params, jnp.zeros((1, 49), jnp.int32), model)
