"""A model with more embedding rows than its tokenizer has tokens: one convention, transformers'.

Probabilities are over all rows, whoever computes them; what is written has text.
"""

import dataclasses
import queue
import random

import jax
import numpy as np
import pytest
from building import changed, random_run

from gpt3jax.checkpoint.load import load_model
from gpt3jax.config import Data, Mesh, Source
from gpt3jax.data.loader import HeldOut
from gpt3jax.data.prepare.prepare import prepare
from gpt3jax.decoding.decode import Sampling
from gpt3jax.decoding.generator import load_generator
from gpt3jax.errors import ConfigError
from gpt3jax.evals.perplexity import perplexity, token_lengths
from gpt3jax.interchange.export import export
from gpt3jax.serve.api import Completion
from gpt3jax.serve.batching import Owner
from gpt3jax.serve.texts import Job
from gpt3jax.sharding.mesh import make_mesh

lm_eval = pytest.importorskip("lm_eval")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

ROWS, TOKENS, CONTEXT = 448, 393, 48


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A tokenizer of 393 tokens: enough unlike words for so many."""
    folder, draw = tmp_path_factory.mktemp("words"), random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 6))) for _ in range(300)]
    for number in range(8):
        (folder / f"{number}.txt").write_text(" ".join(draw.choices(words, k=2000)))
    out = tmp_path_factory.mktemp("prepared") / "data"
    prepare(str(folder), str(out), context=CONTEXT, vocabulary=TOKENS, validation_fraction=0.1,
            workers=1)  # fmt: skip
    return out


@pytest.fixture
def pair(experiment, prepared, tmp_path):
    """A run, and transformers' model of what it exports."""
    shape = {"dense_every": 1, "vocabulary": ROWS}
    experiment = changed(experiment, model=shape)
    data = Data(sources=(Source("words", str(prepared)),))
    experiment = dataclasses.replace(experiment, data=data)
    run = random_run(tmp_path / "run", experiment)
    export(run.path, tmp_path / "exported", progress=lambda *_: None)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported").eval()
    assert theirs.config.vocab_size == ROWS
    return run, theirs, tmp_path / "exported"


def their_log(theirs, ids):
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits[0].double()
    return torch.log_softmax(logits, -1).numpy()


def test_scores_served_beams_and_perplexity_are_those_of_transformers(pair):
    run, theirs, _ = pair
    generator = load_generator(run.path)
    assert generator.tokenizer.vocabulary == TOKENS
    prompt = np.random.default_rng(0).integers(2, TOKENS, 9).tolist()

    owner, found = Owner(generator, 1, 1), queue.Queue()
    owner.start()
    asked = Completion((tuple(prompt),), 20, 1.0, 1.0, 1, (), 5, True, 3, False, False)
    owner.submit(Job(asked, found.put))
    scored = found.get(timeout=120).tokens
    owner.close()
    ids = [each.token for each in scored]
    log = their_log(theirs, ids)
    best_is_no_token = 0
    for at, each in enumerate(scored[1:]):
        assert each.log_probability == pytest.approx(log[at, each.token], abs=1e-4)
        tokens, logs = zip(*each.best, strict=True)
        assert list(tokens) == np.argsort(-log[at])[:5].tolist()
        np.testing.assert_allclose(logs, log[at, list(tokens)], atol=1e-4)
        best_is_no_token += max(tokens) >= TOKENS
    assert best_is_no_token, "rows without text are among the likeliest, and named"

    (beam,) = generator.beam_search(prompt, new_tokens=8, width=1)
    text = prompt + beam.tokens
    log = their_log(theirs, text)
    total = sum(log[at - 1, text[at]] for at in range(len(prompt), len(text)))
    if len(beam.tokens) < 8:
        total += log[-1, generator.tokenizer.end_of_text]
    assert beam.log_probability == pytest.approx(total, abs=1e-3)

    mesh = make_mesh(Mesh(data=1), jax.devices()[:1])
    saved = load_model(run.path, None, mesh)
    window = np.array([text[:13]])
    windows = HeldOut(window, np.zeros(len(window), bool), len(window))
    lengths = token_lengths(saved.tokenizer, saved.model.padded_vocabulary)
    nats = perplexity(saved.params, saved.model, mesh, windows, lengths).nats
    log = their_log(theirs, text[:13])
    expected = -sum(log[at - 1, text[at]] for at in range(1, 13))
    assert nats == pytest.approx(expected, abs=1e-3)


def test_what_is_written_has_text_however_likely_other_rows_are(pair):
    run, theirs, _ = pair
    generator = load_generator(run.path)
    prompt = np.random.default_rng(1).integers(2, TOKENS, 9).tolist()
    rows = np.stack(list(generator.tokens(
        prompt, new_tokens=30, rows=8, sampling=Sampling(temperature=1.5), seed=0,
    )))  # fmt: skip
    assert rows.max() < TOKENS
    greedy = [int(t) for (t,) in generator.tokens(
        prompt, new_tokens=20, sampling=Sampling(temperature=0)
    )]  # fmt: skip
    log = their_log(theirs, prompt + greedy)[len(prompt) - 1 : -1]
    assert greedy == log[:, :TOKENS].argmax(-1).tolist()
    assert log.argmax(-1).max() >= TOKENS, "of all rows another would have been taken"


def test_the_harness_scores_as_by_transformers_whatever_a_context_holds(pair):
    """Nothing, only spaces, or text; beside others and alone."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from gpt3jax.evals.lm_eval import Gpt3Jax

    run, _, exported = pair
    theirs = HFLM(pretrained=str(exported), device="cpu", dtype="float32", max_length=CONTEXT,
                  batch_size=1)  # fmt: skip
    ours = Gpt3Jax(str(run.path))
    pairs = [("", "abc"), ("   ", "abc"), (" \n ", "dd e"), ("ab ", "cde fg"), ("ab c", " de"),
             ("  ", "ij"), ("", "   abc")]  # fmt: skip

    def asked(which):
        return [Instance("loglikelihood", {}, each, n) for n, each in enumerate(which)]

    # Of nothing but spaces they move all to the continuation, and then stop at an assertion that
    # a context is left: the same tokens after the same beginning are asked of an empty one.
    as_they_can = [("", a + b) if not a.strip() else (a, b) for a, b in pairs]
    with pytest.raises(AssertionError):
        theirs.loglikelihood(asked([("   ", "abc")]))
    expected = theirs.loglikelihood(asked(as_they_can))
    together = ours.loglikelihood(asked(pairs))
    alone = [ours.loglikelihood(asked([each]))[0] for each in pairs]
    for found in (together, alone):
        for (log, is_greedy), (their, theirs_is) in zip(found, expected, strict=True):
            assert log == pytest.approx(their, abs=1e-3) and is_greedy == theirs_is
    assert together[1] == pytest.approx(together[6], abs=1e-5) and together[1][0] < -1

    # A greedy continuation is called so.
    generator = load_generator(run.path)
    (beam,) = generator.beam_search([generator.tokenizer.end_of_text], new_tokens=3, width=1)
    text = generator.decode_until(beam.tokens, ())
    greedy = [("", text), ("  ", "ab")]
    assert [each for _, each in ours.loglikelihood(asked(greedy))] == [
        each for _, each in theirs.loglikelihood(asked([("", text), ("", "  ab")]))
    ]
    with pytest.raises(ConfigError, match="no token of its own"):
        ours.loglikelihood(asked([("ab", "")]))
    with pytest.raises(AssertionError):
        theirs.loglikelihood(asked([("ab", "")]))
