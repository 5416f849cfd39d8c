"""Four ways to score a text agree, and answers do not depend on the batch."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from building import randomised
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt3jax.config import Mesh, Model
from gpt3jax.data.tokenizer import Tokenizer, train_tokenizer
from gpt3jax.evals import packing
from gpt3jax.evals.scoring import Scorer
from gpt3jax.model.gpt3 import forward
from gpt3jax.sharding.mesh import make_mesh

TEXT = "the cat sat on the mat. a dog ran to the park, and 12 plus 34 makes 46.\n"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(train_tokenizer([TEXT] * 50, 300))


@pytest.fixture(scope="module")
def model(tokenizer):
    return Model(
        n_layers=2, d_model=32, n_heads=4, d_head=8, vocabulary=tokenizer.vocabulary, context=96,
        band=9, scan_layers=False, init_std=0.3,
    )  # fmt: skip


@pytest.fixture(scope="module")
def params(model):
    return randomised(model)


@pytest.fixture(scope="module")
def scorer(params, model, tokenizer):
    return Scorer(params, model, tokenizer, make_mesh(Mesh(data=1), jax.devices()[:1]))


@pytest.fixture(scope="module")
def alone(params, model):
    """log p [T, V] of a row by itself; jitted at one length, for its padding is never seen."""
    run = jax.jit(lambda tokens: forward(params, tokens, model).logits[0, :, : model.vocabulary])

    def log_p(tokens):
        padded = np.zeros((1, model.context), np.int32)
        padded[0, : len(tokens)] = tokens
        return np.asarray(jax.nn.log_softmax(run(padded)))[: len(tokens)]

    return log_p


def texts(lengths, seed, beginning=()):
    rng = random.Random(seed)
    return [(*beginning, *(rng.randrange(300) for _ in range(n))) for n in lengths]


def expected(alone, prompt, completion):
    log_p = alone(prompt + completion)[len(prompt) - 1 : -1]
    places = np.arange(len(completion))
    return log_p[places, completion], log_p.argmax(-1) == np.array(completion)


BEGINNING = texts([40], 9)[0]
CASES = {
    "packed": list(zip(texts([3, 30, 1, 17], 0), texts([2, 1, 6, 3], 1), strict=True)),
    "candidates": [(p, c) for p in texts([5, 21], 2) for c in texts([1, 4, 2], 3)],
    "shared": [
        (p, c) for p in texts([18, 20, 30, 25], 4, BEGINNING) for c in texts([3, 1], 5)
    ],
    "shared, one of them short": [
        (p, c) for p in texts([2, 40, 14], 12, BEGINNING[:34]) for c in texts([3, 1], 5)
    ],
    "one": [(texts([8], 6)[0], texts([3], 7)[0])],
}  # fmt: skip


@pytest.mark.parametrize("pairs", CASES.values(), ids=CASES)
def test_every_way_gives_the_scores_of_a_text_alone(scorer, alone, pairs):
    for (prompt, completion), found in zip(pairs, scorer.score(pairs), strict=True):
        log_p, is_likeliest = expected(alone, prompt, completion)
        np.testing.assert_allclose(found.log_probabilities, log_p, atol=1e-5)
        assert found.is_likeliest == tuple(is_likeliest)


@pytest.mark.parametrize(
    ("case", "way"),
    [("packed", ("_packed", False)), ("candidates", ("_scores", False)),
     ("shared", ("_scores", True))],
)  # fmt: skip
def test_each_case_goes_its_own_way(scorer, monkeypatch, case, way):
    """Or the test above would compare one way four times."""
    used = []
    for name in ("_packed", "_scores"):
        real = getattr(scorer, name)

        def spy(params, arrays, *a, _name=name, _real=real, **k):
            used.append((_name, isinstance(arrays, list) and len(arrays) > 2))
            return _real(params, arrays, *a, **k)

        monkeypatch.setattr(scorer, name, spy)
    scorer.score(CASES[case])
    assert set(used) == {way}


@pytest.mark.parametrize("axes", [(2, 2, 2), (1, 8, 1)], ids=str)
@pytest.mark.parametrize("pairs", CASES.values(), ids=CASES)
@pytest.mark.in_ci("*2, 2, 2*")
def test_scores_on_a_mesh_are_the_same(scorer, params, model, tokenizer, axes, pairs):
    mesh = make_mesh(Mesh(*axes))
    with jax.set_mesh(mesh):
        spread = Scorer(params, model, tokenizer, mesh).score(pairs)
    for a, b in zip(scorer.score(pairs), spread, strict=True):
        np.testing.assert_allclose(a.log_probabilities, b.log_probabilities, atol=1e-5)


def test_a_greedy_answer_is_the_likeliest_token_each_time(scorer, alone, tokenizer):
    prompts = [*texts([5, 9, 30], 8), *texts([22], 10, BEGINNING)]
    for prompt, answer in zip(
        prompts, scorer.answer(prompts, new_tokens=6, stop=("\n",), width=1), strict=True
    ):
        written, total = [], 0.0
        while len(written) < 6:
            log_p = alone((*prompt, *written))[-1]
            written.append(int(log_p.argmax()))
            total += float(log_p.max())
            if "\n" in tokenizer.decode(written) or written[-1] == tokenizer.end_of_text:
                break
        assert list(answer.tokens) == written
        assert answer.log_probability == pytest.approx(total, abs=1e-4)


def test_answers_after_a_shared_beginning_are_those_of_prompts_alone(scorer):
    prompts = texts([20, 19, 24], 11, BEGINNING)
    together = scorer.answer(prompts, new_tokens=5, stop=("\n",), width=3)
    for prompt, answer in zip(prompts, together, strict=True):
        (alone,) = scorer.answer([prompt], new_tokens=5, stop=("\n",), width=3)
        assert alone.tokens == answer.tokens
        assert alone.log_probability == pytest.approx(answer.log_probability, abs=1e-4)


def best_of_beams(log_p, prompt, ends, *, most, width, alpha):
    """Beam search as a list of texts, each of which is read anew from its beginning."""
    beams, found, ended = [(0.0, ())], [], 0
    for length in range(1, most + 1):
        longer = [
            (total + float(each), (*text, token))
            for total, text in beams
            for token, each in enumerate(log_p((*prompt, *text))[-1])
        ]
        beams = []
        for rank, (total, text) in enumerate(sorted(longer, reverse=True)[: 2 * width]):
            if not ends[text[-1]]:
                beams = [*beams, (total, text)][:width]
            elif rank < width and ended < width:
                ended += 1
                found.append((total / ((5 + length) / 6) ** alpha, text))
        if ended == width:
            return max(found)[1]
    return max(found + [(total / ((5 + most) / 6) ** alpha, text) for total, text in beams])[1]


@pytest.mark.parametrize("beginning", [(), BEGINNING], ids=["apart", "shared"])
@pytest.mark.parametrize("stop", [("e", "a"), ("no such text",)], ids=["ends", "never ends"])
def test_answers_are_those_of_a_search_without_a_cache(scorer, alone, beginning, stop):
    """Each beam sees the tokens that it continues, and none of another's, in every layer."""
    prompts, ends = texts([6, 25, 11], 18, beginning), scorer._ends(stop)
    found = scorer.answer(prompts, new_tokens=6, stop=stop, width=4)
    for prompt, answer in zip(prompts, found, strict=True):
        expected = best_of_beams(alone, prompt, ends, most=6, width=4, alpha=0.6)
        assert answer.tokens == expected


@pytest.mark.parametrize("beginning", [(), BEGINNING], ids=["apart", "shared"])
def test_scores_beside_answers_are_those_of_texts_alone(scorer, alone, beginning):
    prompts = texts([7, 20, 3], 13, beginning)
    candidates = [texts([2, 5], 14), texts([1], 15), texts([4, 1], 16)]
    options = {"new_tokens": 5, "stop": ("\n",), "width": 2}
    found = scorer.answer(prompts, candidates=candidates, **options)
    without = scorer.answer(prompts, **options)
    for prompt, completions, answer, other in zip(prompts, candidates, found, without, strict=True):
        assert answer.tokens == other.tokens
        assert len(answer.candidates) == len(completions)
        for completion, scored in zip(completions, answer.candidates, strict=True):
            log_p, is_likeliest = expected(alone, prompt, completion)
            np.testing.assert_allclose(scored.log_probabilities, log_p, atol=1e-5)
            assert scored.is_likeliest == tuple(is_likeliest)


def test_answers_of_many_lengths_share_a_program(scorer):
    (prompt,) = texts([9], 17)
    before = scorer._answers._cache_size()
    for most in range(1, 9):
        (answer,) = scorer.answer([prompt], new_tokens=most, stop=("no such text",), width=5)
        assert len(answer.tokens) <= most
    assert scorer._answers._cache_size() - before == 1


def test_few_programs_serve_many_lengths(scorer):
    """Shapes are powers of two: a hundred lengths compile no more than a handful."""
    before = scorer._scores._cache_size()
    for n in range(1, 60):
        scorer.score([(p, c) for p in texts([n], n) for c in texts([1, 2], n)])
    assert scorer._scores._cache_size() - before <= 3


tokens = st.lists(st.integers(0, 5), min_size=1, max_size=40).map(tuple)


@given(st.lists(tokens, min_size=1, max_size=30), st.sampled_from([1, 2, 4]))
@settings(deadline=None)
def test_packing_keeps_every_text_whole_and_apart(found, multiple):
    seen = {}
    for rows, positions, where in packing.pack(found, 40, 160, multiple):
        assert rows.shape[0] % multiple == 0
        for number, (row, start) in where.items():
            stop = start + len(found[number])
            assert number not in seen
            seen[number] = tuple(rows[row, start:stop].tolist())
            assert positions[row, start:stop].tolist() == list(range(stop - start))
    assert seen == dict(enumerate(found))


@given(st.lists(tokens, min_size=2, max_size=8))
@settings(deadline=None)
def test_the_common_prefix_is_the_longest_proper_prefix_of_all_texts(found):
    shared = packing.common_prefix(found)
    assert all(each[: len(shared)] == shared and len(each) > len(shared) for each in found)
    longer = {each[: len(shared) + 1] for each in found}
    assert len(longer) > 1 or min(map(len, found)) == len(shared) + 1


def test_scores_are_float32_sums_of_nats(scorer):
    (found,) = scorer.score([(CASES["one"][0][0], (1, 2))])
    assert all(value <= 0 for value in found.log_probabilities)
    assert jnp.float32(found.log_probabilities[0]) == found.log_probabilities[0]
