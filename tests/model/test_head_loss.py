"""The loss over bfloat16 activations: logits of half the width, a softmax in float32."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from gpt3jax.config import Mesh
from gpt3jax.model.logprobs import logits_of
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.train.loss import head_loss

ROWS, WIDTH, TOKENS, VOCABULARY = 24, 64, 256, 250
"""The last six rows of the table are padding."""


def arrays(scale):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(ROWS, WIDTH)), scale * rng.normal(size=(TOKENS, WIDTH))
    targets = rng.integers(0, VOCABULARY, ROWS).astype(np.int32)
    targets[::5] = ~targets[::5]  # Not learned.
    return *(jnp.asarray(each, jnp.bfloat16) for each in (x, w)), targets


def expected(x, w, targets):
    """Loss, and gradients, by numpy in float64 from logits that are rounded to bfloat16."""
    x, w = (np.asarray(each, np.float64) for each in (x, w))
    logits = (x @ w.T).astype(ml_dtypes.bfloat16).astype(np.float64)[:, :VOCABULARY]
    learned = targets >= 0
    target = np.where(learned, targets, 0)
    lse = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    losses = np.where(learned, lse - logits[np.arange(ROWS), target], 0)
    gradient = np.zeros((ROWS, TOKENS))
    gradient[:, :VOCABULARY] = np.exp(logits - lse[:, None])
    gradient[np.arange(ROWS), target] -= 1
    gradient *= learned[:, None]
    return losses.sum(), gradient @ w, gradient.T @ x


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_the_loss_and_its_gradients_are_those_of_rounded_logits(scale):
    x, w, targets = arrays(scale)
    with jax.set_mesh(make_mesh(Mesh(data=1), jax.devices()[:1])):
        loss, gradients = jax.value_and_grad(head_loss, argnums=(0, 1))(x, w, targets, VOCABULARY)
    exact, *exact_gradients = expected(x, w, targets)
    # Sums in another order may round a few logits to their neighbours. Were none rounded, the loss
    # would be off by 5e-5 and 3e-4 of it.
    assert float(loss) == pytest.approx(exact, rel=3e-5)
    for found, true in zip(gradients, exact_gradients, strict=True):
        error = np.linalg.norm(np.asarray(found, np.float64) - true) / np.linalg.norm(true)
        assert error < 0.005, "bfloat16 gradients of the logits, and no worse"


def test_scores_have_float32_logits():
    """What evaluation reads is not rounded."""
    x, w, _ = arrays(1.0)
    logits = np.asarray(logits_of(x, w, VOCABULARY))[:, :VOCABULARY]
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    np.testing.assert_allclose(logits, exact[:, :VOCABULARY], rtol=1e-5, atol=1e-4)
    halved = np.asarray(logits_of(x, w, VOCABULARY, jnp.bfloat16))[:, :VOCABULARY]
    assert np.abs(halved - exact[:, :VOCABULARY]).max() > 0.01
