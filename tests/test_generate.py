"""Tokens and text: the same seed the same text, and every shortcut equal to the long way."""

import dataclasses
import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt3jax.config import Model
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.decoding import beam_search, decode
from gpt3jax.decoding.decode import Sampling
from gpt3jax.decoding.generator import Generator
from gpt3jax.errors import ConfigError
from gpt3jax.model.gpt3 import forward
from gpt3jax.model.init import init_params

# Large initial weights, so that the likeliest token is clearly so.
MODEL = Model(
    n_layers=2, d_model=32, n_heads=4, d_head=8, vocabulary=300, context=32, band=8,
    scan_layers=False, init_std=0.3,
)  # fmt: skip
PARAMS = init_params(jax.random.key(0), MODEL)
GREEDY = Sampling(temperature=0.0)
PROMPT = [5, 77, 123, 9, 200]


@pytest.fixture(scope="module")
def generator(prepared):
    return Generator(PARAMS, MODEL, Tokenizer.load(prepared / "tokenizer.model"))


def drawn(generator, prompt=PROMPT, **options):
    """Tokens [rows, new]."""
    return np.stack(list(generator.tokens(prompt, **options)), axis=1)


full_forward = jax.jit(lambda tokens: forward(PARAMS, tokens, MODEL).logits)


def the_long_way(prompt, new_tokens, rows=1, sampling=GREEDY, seed=0):
    """A whole forward pass for each token, over what the window then holds."""
    prompt, found = np.tile(prompt, (rows, 1)), []
    window = prompt[:, -MODEL.context :]
    for number in range(new_tokens):
        length = window.shape[1]
        padded = np.pad(window, ((0, 0), (0, MODEL.context - length)))
        logits = full_forward(padded)[:, length - 1, : MODEL.vocabulary]
        found.append(np.asarray(decode.draw(logits, seed, prompt.shape[1] + number, sampling)))
        window = np.concatenate([window, found[-1][:, None]], axis=1)
        if window.shape[1] > MODEL.context:
            window = window[:, -(MODEL.context // 2) :]
    return np.stack(found, axis=1)


@pytest.mark.parametrize(("new_tokens", "slots"), [(11, 16), (12, 32), (40, 32)])
def test_the_cache_has_room_for_what_is_written(generator, monkeypatch, new_tokens, slots):
    """Each step reads all of it; and the tokens are those of a longer text's beginning."""
    seen, write = set(), generator._write

    def watched(params, writing, *rest):
        seen.add(writing.cache.keys[0].shape[2])
        return write(params, writing, *rest)

    monkeypatch.setattr(generator, "_write", watched)
    found = drawn(generator, new_tokens=new_tokens, sampling=GREEDY)
    assert seen == {slots}
    np.testing.assert_array_equal(found, the_long_way(PROMPT, new_tokens))


def test_the_same_seed_gives_the_same_tokens(generator):
    first, again, other = (drawn(generator, new_tokens=12, rows=2, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first[0] != first[1]).any(), "rows are different samples"


def test_a_sample_does_not_depend_on_how_many_are_drawn(generator):
    """Also past the context, where rows no longer share what they read."""
    few, many = (drawn(generator, new_tokens=40, rows=rows, seed=3) for rows in (2, 3))
    np.testing.assert_array_equal(few, many[:2])


@pytest.mark.parametrize("length", [1, 5, 16, 17, 32])
def test_temperature_0_is_the_argmax_of_the_full_forward_at_every_step(generator, length):
    """Over more tokens than the context: the window is refilled with its newer half."""
    prompt = np.random.default_rng(length).integers(2, 300, length).tolist()
    new = 3 * MODEL.context
    found = drawn(generator, prompt, new_tokens=new, sampling=GREEDY)
    np.testing.assert_array_equal(found, the_long_way(prompt, new))


def test_samples_are_drawn_from_the_full_forward_each_from_its_own_text(generator):
    new, sampling = MODEL.context + 10, Sampling(temperature=0.7, top_k=40)
    found = drawn(generator, new_tokens=new, rows=2, sampling=sampling, seed=5)
    np.testing.assert_array_equal(found, the_long_way(PROMPT, new, 2, sampling, seed=5))


def test_tokens_after_a_refill_are_those_of_a_fresh_read_of_the_newer_half(generator):
    until_full = MODEL.context - len(PROMPT) + 1
    found = drawn(generator, new_tokens=until_full + 8, sampling=GREEDY)[0].tolist()
    newer_half = (PROMPT + found[:until_full])[-(MODEL.context // 2) :]
    fresh = drawn(generator, newer_half, new_tokens=8, sampling=GREEDY)[0]
    assert found[until_full:] == fresh.tolist()


def test_ids_that_the_tokenizer_does_not_have_are_never_written(generator):
    wide = dataclasses.replace(MODEL, vocabulary=500)
    params = init_params(jax.random.key(0), wide)
    smaller = Generator(params, wide, generator.tokenizer)
    assert drawn(smaller, new_tokens=20, rows=8).max() < generator.tokenizer.vocabulary == 300


def test_of_a_long_prompt_the_last_context_tokens_are_read(generator):
    long = np.random.default_rng(0).integers(2, 300, 3 * MODEL.context).tolist()
    found = drawn(generator, long, new_tokens=5, sampling=GREEDY)
    short = drawn(generator, long[-MODEL.context :], new_tokens=5, sampling=GREEDY)
    np.testing.assert_array_equal(found, short)
    one_more_forgotten = drawn(generator, long[: -MODEL.context], new_tokens=5, sampling=GREEDY)
    assert (found != one_more_forgotten).any()


def test_an_empty_prompt_starts_a_document(generator):
    start = [generator.tokenizer.end_of_text]
    np.testing.assert_array_equal(
        drawn(generator, [], new_tokens=5), drawn(generator, start, new_tokens=5)
    )


def test_one_program_writes_every_token_of_every_prompt(prepared):
    model = dataclasses.replace(MODEL, band=7)  # of its own: jax shares programs by function
    generator = Generator(PARAMS, model, Tokenizer.load(prepared / "tokenizer.model"))
    programs = (generator._write, generator._prefill, generator._draw)
    before = [program._cache_size() for program in programs]
    for prompt, seed in ([PROMPT, 0], [PROMPT[:2], 1], [PROMPT * 3, 2]):
        drawn(generator, prompt, new_tokens=40, seed=seed)
    generator.load(init_params(jax.random.key(1), model))
    drawn(generator, new_tokens=40)
    new = [program._cache_size() - count for program, count in zip(programs, before, strict=True)]
    assert new[:2] == [1, 1]
    assert new[2] <= 1, "drawing knows no model: another test may have compiled it"


@pytest.mark.parametrize("seconds", [0, 1e9])
def test_tokens_do_not_depend_on_the_sizes_of_chunks(generator, monkeypatch, seconds):
    """Chunks of one token, as on a slow device, and of as many as there may be."""
    expected = drawn(generator, new_tokens=45, rows=2)
    counts, write = [], generator._write

    def watched(params, writing, seed, position, count, *rest):
        counts.append(count)
        return write(params, writing, seed, position, count, *rest)

    monkeypatch.setattr(generator, "_write", watched)
    monkeypatch.setattr("gpt3jax.decoding.generator.CHUNK_SECONDS", seconds)
    np.testing.assert_array_equal(drawn(generator, new_tokens=45, rows=2), expected)
    assert (set(counts) == {1}) if seconds == 0 else (counts[:4] == [1, 2, 4, 8])


def test_decoding_stops_on_the_device_when_each_row_has_ended(generator):
    """The chunk after the end is empty, and until then the tokens are the same."""
    complete = drawn(generator, new_tokens=40, rows=2, seed=5)
    end = int(complete[0, 9])
    ended_at = [row.tolist().index(end) if end in row else 39 for row in complete]
    ended = drawn(generator, new_tokens=40, rows=2, seed=5, end=end)
    assert ended.shape[1] == max(ended_at) + 1
    for found, expected, at in zip(ended, complete, ended_at, strict=True):
        np.testing.assert_array_equal(found[: at + 1], expected[: at + 1])

    prompt = jnp.asarray([PROMPT], jnp.int32)
    _, cache = generator._prefill(generator.params, prompt, len(PROMPT), MODEL, 32)
    writing = decode.Writing(cache, jnp.full(1, end, jnp.int32), jnp.zeros(1, bool))
    settings = (np.uint32(0), len(PROMPT), 10, end, MODEL, GREEDY, generator.vocabulary)
    tokens, writing = generator._write(generator.params, writing, *settings)
    assert int(writing.cache.length) == len(PROMPT) and not np.asarray(tokens).any()


def test_the_single_likeliest_token_is_the_greedy_one(generator):
    only = drawn(generator, new_tokens=10, sampling=Sampling(top_k=1), seed=4)
    np.testing.assert_array_equal(only, drawn(generator, new_tokens=10, sampling=GREEDY))


def kept_reference(logits, top_k, top_p):
    """Which tokens stay, one distribution at a time; ties with the last kept one stay too."""
    kept = np.ones(len(logits), bool)
    if 0 < top_k < len(logits):
        kept = logits >= np.sort(logits)[-top_k]
    if top_p < 1:
        weights = np.where(kept, np.exp(logits.astype(np.float64) - logits.max()), 0.0)
        total = 0.0
        for token in np.argsort(-np.where(kept, logits, -np.inf), kind="stable"):
            total += weights[token] / weights.sum()
            last = logits[token]
            if total >= top_p:
                break
        kept &= logits >= last
    return kept


DISTRIBUTIONS = {
    "random": np.random.default_rng(0).normal(0, 2, 50),
    "wide": np.random.default_rng(1).normal(0, 30, 50),
    "flat": np.zeros(8),
    "spike": np.array([0.0, 1e4, 0.0, 0.0]),
    "ties at the top": np.array([1.0, 3.0, 3.0, 0.0, 3.0]),
    "quarters": np.log([0.5, 0.25, 0.125, 0.125]),
    "some impossible": np.array([-np.inf, 1.0, -np.inf, 0.5, 0.0]),
    "two": np.array([0.1, -0.1]),
    "one": np.array([2.0]),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_truncation_keeps_what_the_long_way_keeps(name):
    logits = DISTRIBUTIONS[name].astype(np.float32)
    for top_k, top_p in itertools.product((0, 1, 2, 3, 49, 1000), (1e-9, 0.3, 0.51, 0.76, 0.99, 1)):
        found = np.asarray(decode.truncate(jnp.asarray(logits)[None], Sampling(1, top_k, top_p)))[0]
        kept = kept_reference(logits, top_k, top_p)
        np.testing.assert_array_equal(found, np.where(kept, logits, -np.inf), f"{top_k} {top_p}")
        assert np.isfinite(found).any()


def test_draws_follow_the_truncated_distribution():
    p = np.array([0.4, 0.3, 0.2, 0.1])
    keys = jax.random.split(jax.random.key(0), 4000)
    logits = jnp.broadcast_to(jnp.log(p), (4000, 4))
    for sampling, expected in (
        (Sampling(1.0), p),
        (Sampling(1.0, top_p=0.65), [4 / 7, 3 / 7, 0, 0]),
        (Sampling(1.0, top_k=3), p * [1, 1, 1, 0] / 0.9),
        (Sampling(0.5), p**2 / (p**2).sum()),
    ):
        tokens = np.asarray(decode.sample(logits, keys, sampling))
        np.testing.assert_allclose(np.bincount(tokens, minlength=4) / 4000, expected, atol=0.03)


def writing(monkeypatch, generator, ids):
    """The generator made to write these tokens; returns the list of those it was asked for."""
    asked = []

    def tokens(prompt, **_):
        for token in ids:
            asked.append(token)
            yield np.array([token], np.int32)

    monkeypatch.setattr(generator, "tokens", tokens)
    return asked


def test_a_stop_string_split_over_tokens_ends_the_text_before_it(generator, monkeypatch):
    ids = [generator.tokenizer.encode(c)[0] for c in "one two three"]
    asked = writing(monkeypatch, generator, ids)
    assert "".join(generator.text("", stop=["two"])) == "one "
    assert len(asked) == len("one two"), "nothing is computed past the stop"
    assert "".join(generator.text("", stop=["tx", "thx"])) == "one two three"
    assert "".join(generator.text("", stop=["three!"])) == "one two three"


def test_end_of_text_ends_the_text(generator, monkeypatch):
    ids = generator.tokenizer.encode("the cat")
    asked = writing(monkeypatch, generator, [*ids, generator.tokenizer.end_of_text, *ids])
    assert "".join(generator.text("")) == "the cat"
    assert len(asked) == len(ids) + 1


def test_pieces_of_text_joined_are_the_text_of_all_tokens(generator, monkeypatch):
    """Any tokens: half characters, ends of text; and any stop string."""
    random_ = random.Random(0)
    byte = [generator.tokenizer.encode(c) for c in ("\u00e9", "\U0001f600", "the cat", " mat.\n")]
    for _ in range(300):
        ids = [t for ids in random_.choices(byte, k=4) for t in ids[: random_.choice((1, 3, 9))]]
        ids += random_.choices(range(300), k=3)
        text = generator.tokenizer.decode(ids).replace("\ufffd", "")
        start = random_.randrange(len(text))
        stop = [text[start : start + 3]] if random_.random() < 0.7 else []
        writing(monkeypatch, generator, ids)
        assert "".join(generator.text("", stop=stop)) == generator.decode_until(ids, stop)


def test_streamed_text_and_whole_samples_stop_at_the_same_place(generator, monkeypatch):
    """When one stop string lies inside another."""
    ids = [generator.tokenizer.encode(c)[0] for c in "the cat sat"]
    writing(monkeypatch, generator, ids)
    stop = ["cat", "a"]
    assert "".join(generator.text("", stop=stop)) == generator.decode_until(ids, stop)


class Digits:
    """What a beam needs of a tokenizer: 0 ends the text."""

    end_of_text, vocabulary = 0, 12


TINY = Model(
    n_layers=2, d_model=16, n_heads=2, d_head=8, vocabulary=12, context=16, scan_layers=False,
    init_std=0.4,
)  # fmt: skip
NEW = 3


# Seeds and prompts of which some end at once, some soon, some never.
CASES = [(1, (3, 2, 4)), (3, (0, 5, 0)), (4, (0, 5, 0)), (8, (3, 9, 4)), (11, (0, 5, 0)), (9, (0,))]


@pytest.fixture(scope="module", params=CASES, ids=str)
def beams(request):
    """A tiny generator, a prompt, and log p of each token of every text of NEW tokens."""
    seed, prompt = request.param
    params = init_params(jax.random.key(seed), TINY)
    every = np.array(list(itertools.product(range(12), repeat=NEW)), np.int32)
    inputs = np.concatenate([np.tile(prompt, (len(every), 1)), every[:, :-1]], axis=1)
    logits = jax.jit(forward, static_argnums=2)(params, inputs, TINY).logits[..., :12]
    log_p = np.asarray(jax.nn.log_softmax(logits))[:, len(prompt) - 1 :]
    table = np.take_along_axis(log_p, every[..., None], -1)[..., 0]
    return Generator(params, TINY, Digits()), prompt, dict(zip(map(tuple, every), table))  # noqa: B905


def all_texts(table):
    """(tokens, log p, length) of everything that can be written in NEW tokens."""
    found = {}
    for tokens, log_p in table.items():
        n = tokens.index(0) + 1 if 0 in tokens else NEW
        found[tokens[:n]] = float(log_p[:n].sum())
    return found


def score(tokens, log_p):
    return log_p / ((5 + len(tokens)) / 6) ** 0.6


def test_the_beam_finds_the_best_of_all_texts(beams):
    generator, prompt, table = beams
    texts = all_texts(table)
    assert sum(map(np.exp, texts.values())) == pytest.approx(1, abs=1e-4)
    best = max(texts, key=lambda tokens: score(tokens, texts[tokens]))
    found = generator.beam_search(prompt, new_tokens=NEW, width=4)[0]
    assert found.tokens == [token for token in best if token != 0]
    assert found.log_probability == pytest.approx(texts[best], abs=1e-4)
    assert found.score == pytest.approx(score(best, texts[best]), abs=1e-4)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_what_a_beam_returns_is_finished_and_scored_by_its_length(beams, width):
    generator, prompt, table = beams
    texts = all_texts(table)
    found = generator.beam_search(prompt, new_tokens=NEW, width=width)
    assert 1 <= len(found) <= width
    assert [f.score for f in found] == sorted((f.score for f in found), reverse=True)
    for each in found:
        whole = (*each.tokens, 0) if len(each.tokens) < NEW else tuple(each.tokens)
        assert each.log_probability == pytest.approx(texts[whole], abs=1e-4)
        assert each.score == pytest.approx(score(whole, texts[whole]), abs=1e-4)


def test_a_beam_of_one_is_greedy(beams):
    generator, prompt, _ = beams
    greedy = drawn(generator, prompt, new_tokens=8, sampling=GREEDY)[0].tolist()
    until_end = greedy[: greedy.index(0)] if 0 in greedy else greedy
    assert generator.beam_search(prompt, new_tokens=8, width=1)[0].tokens == until_end


def test_a_beam_that_does_not_fit_the_context_is_refused(generator):
    for new_tokens in (MODEL.context, MODEL.context + 5):
        with pytest.raises(ConfigError):
            generator.beam_search(PROMPT, new_tokens=new_tokens, width=2)


def test_a_beam_step_takes_the_best_of_all_continuations_of_all_beams():
    logits = np.random.default_rng(0).normal(size=(3, 12)).astype(np.float32)
    totals = np.array([[-1.0], [-3.0], [-2.0]]) + np.asarray(jax.nn.log_softmax(logits))
    order = sorted(np.ndindex(3, 12), key=lambda where: -totals[where])[:8]
    log = jax.nn.log_softmax(logits)
    best, beams, tokens = beam_search._best(log[None], jnp.array([[-1.0, -3.0, -2.0]]))
    assert list(zip(beams[0].tolist(), tokens[0].tolist(), strict=True)) == order[:6]
    np.testing.assert_allclose(best[0], [totals[where] for where in order[:6]], rtol=1e-5)


@pytest.mark.parametrize(
    ("length", "penalty"),
    [(1, 1.0), (2, 1.096903), (5, 1.358655), (10, 1.732862), (20, 2.354362)],
)
def test_the_length_penalty_is_the_papers(length, penalty):
    assert float(beam_search.length_penalty(length, 0.6)) == pytest.approx(penalty, abs=1e-6)


@pytest.mark.parametrize("token", [-1, MODEL.vocabulary])
def test_ids_that_the_model_does_not_have_are_an_error(generator, token):
    """JAX would take the nearest one in silence."""
    for draw in (generator.tokens, generator.beam_search):
        with pytest.raises(ConfigError, match=f"token id {token} is not in the model"):
            list(draw([*PROMPT, token], new_tokens=1))
