"""Loss by token, byte and word over windows: each learned token once, nothing else."""

import math

import jax
import numpy as np
import pytest
from building import randomised

from gpt3jax.config import Mesh, Model
from gpt3jax.data.tokenizer import Tokenizer, train_tokenizer
from gpt3jax.evals.perplexity import BATCH_WINDOWS, perplexity
from gpt3jax.model.gpt3 import forward
from gpt3jax.sharding.mesh import make_mesh

TEXT = "the cat sat on the mat.\na dog ran to the park, caf\u00e9 12 plus 34.\n"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(train_tokenizer([TEXT] * 50, 300))


@pytest.fixture(scope="module")
def model(tokenizer):
    return Model(
        n_layers=1, d_model=16, n_heads=2, d_head=8, vocabulary=tokenizer.vocabulary, context=12,
        scan_layers=False, init_std=0.3,
    )  # fmt: skip


@pytest.fixture(scope="module")
def params(model):
    return randomised(model)


@pytest.fixture
def windows(tokenizer):
    ids = tokenizer.encode(TEXT * 40)
    count = BATCH_WINDOWS + 3
    return np.array(ids[: 13 * count], np.int32).reshape(count, 13)


def expected(params, model, windows):
    """Nats of every token but the first [B, T], by the plain forward pass."""
    logits = forward(params, windows[:, :-1], model).logits[..., : model.vocabulary]
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    return -np.take_along_axis(log_p, windows[:, 1:, None], -1)[..., 0]


def measured(params, model, tokenizer, windows):
    mesh = make_mesh(Mesh(data=2, tensor=2), jax.devices()[:4])
    with jax.set_mesh(mesh):
        return perplexity(params, model, mesh, windows, tokenizer)


def test_every_token_but_the_first_of_each_window_counts_once(params, model, tokenizer, windows):
    found, nats = measured(params, model, tokenizer, windows), expected(params, model, windows)
    assert found.tokens == nats.size
    np.testing.assert_allclose(found.nats, nats.sum(), rtol=1e-6)
    np.testing.assert_allclose(found.by_position, nats.mean(0), rtol=1e-5)
    text = [tokenizer.decode(window[1:].tolist()) for window in windows]
    assert found.words == sum(len(part.split()) + part.count("\n") for part in text)
    assert found.per_token == found.nats / found.tokens
    assert found.bits_per_byte == found.nats / math.log(2) / found.text_bytes
    assert found.per_word == math.exp(found.nats / found.words)
    spelt = sum(len(tokenizer.token_bytes(int(id_))) for id_ in windows[:, 1:].flat)
    assert found.text_bytes == spelt


def test_of_pairs_only_completions_count(params, model, tokenizer, windows):
    """A prompt's ids are stored as ~id; it is read, as the plain ids are."""
    masked = windows.copy()
    masked[:, :4] = ~masked[:, :4]
    masked[0] = ~windows[0]
    found, nats = measured(params, model, tokenizer, masked), expected(params, model, windows)
    assert found.tokens == 9 * (len(windows) - 1)
    assert found.by_position[:3] == (None, None, None)
    np.testing.assert_allclose(found.nats, nats[1:, 3:].sum(), rtol=1e-6)
    np.testing.assert_allclose(found.by_position[3:], nats[1:, 3:].mean(0), rtol=1e-5)
    spelt = sum(len(tokenizer.token_bytes(int(id_))) for id_ in windows[1:, 4:].flat)
    assert found.text_bytes == spelt
