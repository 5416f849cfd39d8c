"""Prompts of different lengths in one batch: each is read as if it were alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from building import randomised

from gpt3jax.config import Mesh, Model
from gpt3jax.decoding.beam_search import search
from gpt3jax.decoding.decode import decode, decoding_params, prefill
from gpt3jax.model.gpt3 import forward
from gpt3jax.model.logprobs import suffix_logprobs, token_logprobs
from gpt3jax.model.param_specs import param_specs
from gpt3jax.sharding.collectives import shard_map
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.sharding.rules import partition_spec, partition_specs

MODEL = Model(
    n_layers=4, d_model=32, n_heads=4, d_head=8, vocabulary=53, context=48, band=7,
    scan_layers=False,
)  # fmt: skip
LENGTHS = (9, 20, 14)


@pytest.fixture(scope="module")
def params():
    return randomised(MODEL)


@pytest.fixture(scope="module")
def prompts():
    draw = np.random.default_rng(1).integers
    shared = draw(0, 53, 6)
    return [np.concatenate([shared, draw(0, 53, length - 6)]) for length in LENGTHS]


def padded(prompts, width):
    rows = np.stack([np.pad(each, (0, width - len(each))) for each in prompts])
    return rows.astype(np.int32)


# Op by op, each length would be compiled op by op, too.
whole = jax.jit(forward, static_argnums=2)
prefilled = jax.jit(prefill, static_argnums=(3, 4))
decoded = jax.jit(decode, static_argnums=3)
searched = jax.jit(search, static_argnames=("model", "new_tokens", "width", "alpha"))
scored = jax.jit(suffix_logprobs, static_argnums=4)


def log_softmax(params, tokens):
    """[T, V] of one row, alone: what follows it in the row is not seen by it."""
    row = np.pad(tokens, (0, MODEL.context - len(tokens)))[None].astype(np.int32)
    logits = whole(params, row, MODEL).logits[0, : len(tokens), :53]
    return np.asarray(jax.nn.log_softmax(logits))


def separately(params, prompts):
    lengths = jnp.array([len(each) for each in prompts])
    return prefilled(decoding_params(params, MODEL), padded(prompts, 24), lengths, MODEL, 32)


def after_prefix(params, prompts):
    """The six tokens that all prompts begin with are read once."""
    ready = decoding_params(params, MODEL)
    beginning = np.pad(prompts[0][:6], (0, 10))[None].astype(np.int32)
    _, prefix = prefilled(ready, beginning, jnp.int32(6), MODEL, 16)
    lengths = jnp.array([len(each) - 6 for each in prompts])
    return prefilled(
        ready, padded([each[6:] for each in prompts], 16), lengths, MODEL, 32, prefix
    )  # fmt: skip


@pytest.mark.parametrize("way", [separately, after_prefix])
def test_prompts_in_a_batch_are_read_as_alone(params, prompts, way):
    logits, cache = way(params, prompts)
    found = np.asarray(jax.nn.log_softmax(logits))
    for row, prompt in enumerate(prompts):
        np.testing.assert_allclose(found[row], log_softmax(params, prompt)[-1], atol=1e-5)
    assert cache.length.tolist() == list(LENGTHS)


@pytest.mark.parametrize("way", [separately, after_prefix])
def test_prompts_are_continued_each_at_its_own_length(params, prompts, way):
    logits, cache = way(params, prompts)
    tokens = np.random.default_rng(3).integers(0, 53, (4, 3)).astype(np.int32)
    for step, token_B in enumerate(tokens):
        logits, cache = decoded(decoding_params(params, MODEL), cache, token_B, MODEL)
        found = np.asarray(jax.nn.log_softmax(logits))
        for row, prompt in enumerate(prompts):
            text = np.concatenate([prompt, tokens[: step + 1, row]])
            np.testing.assert_allclose(found[row], log_softmax(params, text)[-1], atol=1e-5)


def test_a_row_without_room_for_its_next_token_becomes_nan_and_no_other(params, prompts):
    lengths = jnp.array([len(each) for each in prompts])
    ready = decoding_params(params, MODEL)
    _, cache = prefilled(ready, padded(prompts, 20), lengths, MODEL, 20)
    logits, _ = decoded(ready, cache, np.zeros(3, np.int32), MODEL)
    assert np.isnan(logits).all(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize("way", [separately, after_prefix])
def test_candidates_after_prompts_are_scored_as_alone(params, prompts, way):
    logits, cache = way(params, prompts)
    suffixes = np.random.default_rng(2).integers(0, 53, (3, 5)).astype(np.int32)
    found = scored(decoding_params(params, MODEL), logits, cache, suffixes, MODEL)
    for row, prompt in enumerate(prompts):
        log_p = log_softmax(params, np.concatenate([prompt, suffixes[row]]))[len(prompt) - 1 : -1]
        expected = log_p[np.arange(5), suffixes[row]]
        np.testing.assert_allclose(found.log_probability[row], expected, atol=1e-5)
        assert (found.is_likeliest[row] == (log_p.argmax(-1) == suffixes[row])).all()


def test_texts_packed_into_a_row_do_not_see_each_other(params, prompts):
    row = np.concatenate(prompts)[None].astype(np.int32)
    places = np.concatenate([np.arange(length) for length in LENGTHS])[None]
    found = token_logprobs(params, row, MODEL, places[:, :-1])
    start = 0
    for prompt in prompts:
        expected = log_softmax(params, prompt)[:-1][np.arange(len(prompt) - 1), prompt[1:]]
        of_text = found.log_probability[0, start : start + len(prompt) - 1]
        np.testing.assert_allclose(of_text, expected, atol=1e-5)
        start += len(prompt)


@pytest.mark.parametrize("axes", [(8, 1, 1), (1, 4, 2), (2, 1, 4)], ids=str)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.in_ci("*True*")
def test_token_scores_are_the_same_on_every_mesh(params, axes, packed):
    rows = np.random.default_rng(3).integers(0, 53, (8, 41)).astype(np.int32)
    places = np.tile(np.arange(40) % 13, (8, 1)) if packed else np.tile(np.arange(40), (8, 1))
    expected = token_logprobs(params, rows, MODEL, places)
    with jax.set_mesh(make_mesh(Mesh(*axes))):
        batch = partition_spec(("batch", None))
        specs = (partition_specs(param_specs(MODEL)), batch, batch)

        def run(params, rows, places):
            return token_logprobs(params, rows, MODEL, places)

        found = jax.jit(shard_map(run, specs, partition_spec(("batch", "heads"))))(
            params, rows, places
        )
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.in_ci("3")
def test_a_search_over_a_batch_finds_what_it_finds_alone(params, prompts, width):
    # So many tokens end an answer that some prompts are done while others go on; and length is
    # so much worth that whatever a done one still wrote would win.
    decoding, is_end = decoding_params(params, MODEL), jnp.arange(53) % 3 == 0

    def best(prompts):
        logits, cache = separately(params, prompts)
        return searched(decoding, logits, cache, is_end, MODEL, new_tokens=7, width=width, alpha=4)

    together = best(prompts)
    for row, prompt in enumerate(prompts):
        alone = best([prompt])
        np.testing.assert_allclose(together.score[row], alone.score[0], atol=1e-5)
        assert (together.length[row] == alone.length[0]).all()
        for beam, length in enumerate(alone.length[0]):
            assert (together.tokens[row, beam, :length] == alone.tokens[0, beam, :length]).all()
