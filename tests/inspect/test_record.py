"""What the page shows, held against other ways to the same numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from building import logits_of, randomised

from gpt3jax.config import Mesh, Model
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.decoding import decode
from gpt3jax.decoding.decode import Sampling
from gpt3jax.decoding.generator import Generator
from gpt3jax.evals.prompts import build_prompts
from gpt3jax.evals.scoring import Scorer
from gpt3jax.evals.tasks import patterns
from gpt3jax.inspect import track
from gpt3jax.inspect.anatomy import GPT3, anatomy, shape_of
from gpt3jax.inspect.capture import attention_of, capture
from gpt3jax.inspect.heads import heads_record
from gpt3jax.inspect.lens import lens_record
from gpt3jax.inspect.shots import SHOTS, shots_record
from gpt3jax.inspect.training import Questions, checkpoints_record
from gpt3jax.model.param_specs import count_params
from gpt3jax.sharding.mesh import make_mesh

SAMPLING = Sampling(temperature=0.7, top_k=40)


@pytest.fixture(scope="module")
def model():
    return Model(
        n_layers=4, d_model=32, n_heads=4, d_head=8, vocabulary=300, context=48, band=12,
    )  # fmt: skip


@pytest.fixture(scope="module")
def params(model):
    return randomised(model)


@pytest.fixture(scope="module")
def tokenizer(prepared):
    return Tokenizer.load(prepared / "tokenizer.model")


@pytest.fixture(scope="module")
def written(model, params, tokenizer):
    """A text, of which the last eight tokens were generated; and what the forward pass gave."""
    prompt = tokenizer.encode("the cat sat on the red mat")
    generator = Generator(params, model, tokenizer)
    new = generator.tokens(prompt, new_tokens=8, sampling=SAMPLING, seed=3)
    tokens = np.array([*prompt, *(int(token) for (token,) in new)])
    want = (*track.WANTED, "queries", "keys")
    return tokens, len(prompt), capture(params, jnp.asarray(tokens)[None], model, want)


def test_probabilities_are_those_that_generation_drew_from(model, params, written):
    """By prefill and cached decoding, as `generate` does, token by token."""
    tokens, length, output = written
    targets = np.append(tokens[1:], 0)
    found = track.predictions(params, output, targets, model, SAMPLING)
    laid_out = decode.decoding_params(params, model)
    logits, cache = decode.prefill(
        laid_out, jnp.asarray(tokens[:length])[None], jnp.int32(length), model
    )
    for t in range(length - 1, len(tokens)):
        p = jax.nn.softmax(logits[0])
        best = np.argsort(-np.asarray(logits[0]))[:10]
        np.testing.assert_array_equal(found["tokens"][t], best)
        np.testing.assert_allclose(found["logits"][t], logits[0][best], atol=1e-4)
        np.testing.assert_allclose(found["p"][t], p[best], rtol=1e-4)
        assert found["target_p"][t] == pytest.approx(float(p[targets[t]]), rel=1e-4)
        kept = jax.nn.softmax(decode.truncate(logits / 0.7, SAMPLING))[0]
        np.testing.assert_allclose(found["drawn"][t], kept[best], rtol=1e-3)
        assert found["target_rank"][t] == (p > p[targets[t]]).sum()
        if t + 1 < len(tokens):
            logits, cache = decode.decode(
                laid_out, cache, jnp.asarray([tokens[t + 1]], jnp.int32), model
            )
    assert (found["target_drawn"][length - 1 : -1] > 0).all()
    greedy = track.predictions(params, output, targets, model, Sampling(temperature=0))
    np.testing.assert_array_equal(greedy["drawn"][:, 0], 1)


def test_pushes_add_up_to_the_logit(model, params, written):
    tokens, _, output = written
    found = track.predictions(params, output, np.append(tokens[1:], 0), model, SAMPLING)
    total = found["push"].sum(0) + found["push_bias"]
    np.testing.assert_allclose(total, found["target_logit"], atol=1e-3)
    assert found["push"].shape == (9, len(tokens))


def test_bars_add_up_and_a_long_text_keeps_the_last_ones(model, params, written, monkeypatch):
    tokens, _, output = written
    found = track.vectors(params, output, tokens, [0, 2])
    assert (
        found["first"] == 0 and found["stride"] == 1 and found["mlp"].shape == (2, len(tokens), 32)
    )
    x = found["token"].astype(float) + found["position"] + found["attention"][0] + found["mlp"][0]
    np.testing.assert_allclose(x, found["residual"][0], atol=0.02)
    residual = np.asarray(output.activations["residual"][2, 0])
    np.testing.assert_allclose(found["size"][2, 1], np.linalg.norm(residual, axis=-1), rtol=1e-5)
    monkeypatch.setattr(track, "MOST_BARS", 8 * 16 * 5)
    monkeypatch.setattr(track, "BARS", 16)
    short = track.vectors(params, output, tokens, [2])
    assert short["first"] == len(tokens) - 8 and short["stride"] == 2
    np.testing.assert_array_equal(short["residual"][0], found["residual"][1, -8:, ::2])


def test_the_lens_ends_with_the_prediction(model, params, written):
    tokens, _, output = written
    targets = np.append(tokens[1:], 0)
    found = lens_record(params, output, targets, model)
    after = track.predictions(params, output, targets, model, SAMPLING)
    np.testing.assert_array_equal(found["tokens"][-1], after["tokens"][:, :5])
    np.testing.assert_allclose(found["p"][-1], after["p"][:, :5], rtol=1e-4)
    np.testing.assert_allclose(np.exp(-found["loss"][-1]), after["target_p"], rtol=1e-4)
    first = found["tokens"][..., 0]
    for t, row in enumerate(found["appears"]):
        assert (first[row:, t] == first[-1, t]).all()
        assert row == 0 or first[row - 1, t] != first[-1, t]


def test_kept_weights_are_the_largest_and_exact(model, params, written, monkeypatch):
    _, _, output = written
    whole = heads_record(params, output.activations, model, [1, 2])
    T = output.logits.shape[1]
    assert whole["kept"] == T and whole["facts"]["induction"].shape == (2, 4)
    for n, layer in enumerate((1, 2)):
        weights = np.asarray(attention_of(output.activations, layer, model)[0])
        again = np.zeros_like(weights)
        np.put_along_axis(again, whole["keys"][n].astype(int), whole["weights"][n], axis=-1)
        np.testing.assert_array_equal(again, weights)
    monkeypatch.setattr("gpt3jax.inspect.heads.MOST_WEIGHTS", 0)
    few = heads_record(params, output.activations, model, [1, 2])
    assert few["kept"] == 4
    np.testing.assert_array_equal(few["weights"], whole["weights"][..., :4])


def test_the_anatomy_counts_every_number_once(model, params):
    found = anatomy(model, params)
    arrays = found["arrays"]
    assert (
        sum(each["count"] * each["copies"] for each in arrays)
        == count_params(model)
        == found["total"]
    )
    assert sum(each["share"] for each in arrays) == pytest.approx(1)
    for each in arrays:
        assert (each["histogram"].sum(-1) == each["count"]).all()
        assert each["histogram"].shape == (each["copies"], 40)
    up = next(each for each in arrays if each["name"] == "layers/up/kernel")
    values = np.asarray(params["layers"]["up"]["kernel"][2]).ravel()
    edges = np.linspace(-up["reach"], up["reach"], 41)
    expected = np.histogram(values.clip(edges[0], edges[-1]), edges)[0]
    assert np.abs(up["histogram"][2] - expected).max() <= 1  # An edge may round either way.
    assert up["rms"][2] == pytest.approx(np.sqrt(np.square(values).mean()), rel=1e-5)
    table = next(each for each in arrays if each["name"] == "token_embedding")
    assert table["shape"] == [300, 32]
    rows = np.asarray(params["token_embedding"][:300], np.float64)
    assert table["mean"][0] == pytest.approx(rows.mean(), rel=1e-4)
    assert table["rms"][0] == pytest.approx(np.sqrt(np.square(rows).mean()), rel=1e-5)


def test_the_anatomy_of_gpt3_needs_no_weights():
    found = anatomy(GPT3)
    layers = [each for each in found["arrays"] if each["name"].startswith("layers/")]
    assert {each["copies"] for each in layers} == {96}
    assert sum(each["count"] for each in layers) == pytest.approx(1.8e9, rel=0.01)
    assert found["total"] == shape_of(GPT3)["parameters"] == pytest.approx(175e9, rel=0.01)
    matrices = [each for each in layers if each["name"].endswith("kernel")]
    assert sum(each["copies"] for each in matrices) == 384


@pytest.mark.long
def test_shots_are_scored_as_the_evaluation_scores_them(model, params, tokenizer):
    context = dataclasses.replace(model, context=160)
    params = randomised(context)
    task = patterns.substitution(count=3)
    found = shots_record(params, context, tokenizer, task)
    scorer = Scorer(params, context, tokenizer, make_mesh(Mesh(data=1), jax.devices()[:1]))
    assert [each["asked"] for each in found["settings"]] == list(SHOTS)
    for setting in found["settings"]:
        asked = build_prompts(task, setting["asked"], tokenizer, context.context)
        scored = scorer.score([each.pairs[each.example.truth] for each in asked])
        expected = [np.exp(sum(each.log_probabilities)) for each in scored]
        np.testing.assert_allclose(setting["p"], expected, rtol=1e-3)
        assert setting["greedy"] == [all(each.is_likeliest) for each in scored]
        kinds = [piece["kind"] for piece in setting["pieces"]]
        assert kinds.count("demonstration") == setting["shots"] and kinds[-1] == "question"
        assert setting["looks"].shape == (4, 4, len(kinds))
        np.testing.assert_allclose(setting["looks"].sum(-1), 1, rtol=1e-4)
        prompt = asked[0].pairs[asked[0].example.truth][0]
        alone = capture(params, jnp.asarray([prompt]), context, ("queries", "keys")).activations
        question = len(tokenizer.encode(asked[0].example.contexts[0]))
        last = np.asarray(attention_of(alone, 2, context)[0, :, -1, -question:].sum(-1))
        np.testing.assert_allclose(setting["looks"][2, :, -1], last, rtol=1e-3)
        banded = setting["looks"][1, :, : -1 if setting["shots"] == 1 else -3]
        assert setting["shots"] < 4 or (banded == 0).all()


@pytest.mark.long
def test_checkpoints_are_asked_as_the_model_would_be(model, params):
    other = randomised(model, seed=1)
    draw = np.random.default_rng(0)
    text, windows = draw.integers(0, 300, 14), draw.integers(0, 300, (2, 9))
    questions = Questions(text, np.append(text[1:], 5), windows)
    found = checkpoints_record([(0, params), (7, other)], questions, model)
    assert found["steps"] == [0, 7] and found["examples"]["p"].shape == (2, 2, 8, 3)
    p = jax.nn.softmax(logits_of(other, text[None], model)[0, :, :300])
    np.testing.assert_allclose(found["text"]["target_p"][1][:-1], p[np.arange(13), text[1:]], 1e-3)
    p = jax.nn.softmax(logits_of(other, windows[:, :-1], model)[..., :300])
    np.testing.assert_array_equal(found["examples"]["tokens"][1, ..., 0], p.argmax(-1))
    bare = checkpoints_record([(0, params)], dataclasses.replace(questions, windows=None), model)
    assert "examples" not in bare and "windows" not in bare
