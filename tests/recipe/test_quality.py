"""The Pareto rule is the paper's, and the classifier separates text from junk."""

import random

import numpy as np
import pytest

from gpt3jax.errors import ConfigError
from gpt3jax.recipe.quality import (
    FEATURES,
    Quality,
    keep_probability,
    keeps,
    train_quality,
    variate,
)


def test_variates_are_those_of_a_pareto_distribution():
    ours = np.array([variate(f"document {i}") for i in range(20_000)])
    theirs = np.random.default_rng(0).pareto(9, 20_000)
    for share in (0.1, 0.5, 0.9, 0.99):
        assert np.quantile(ours, share) == pytest.approx(np.quantile(theirs, share), rel=0.05)
    assert variate("a") == variate("a") != variate("b")


@pytest.mark.parametrize(
    ("score", "share"),
    [(0.0, 0.001953), (0.25, 0.006496), (0.5, 0.026012), (0.75, 0.134218), (0.9, 0.424098),
     (0.95, 0.644609), (1.0, 1.0)],
)  # fmt: skip
def test_of_each_score_the_papers_share_is_kept(score, share):
    assert keep_probability(score) == pytest.approx(share, rel=1e-3)
    count = 20_000
    kept = sum(keeps(score, f"text {i}") for i in range(count))
    assert abs(kept - count * share) <= 4 * (count * share * (1 - share)) ** 0.5 + 1e-9


def test_who_scores_higher_is_kept_whenever_the_lower_is():
    for i in range(2000):
        assert keeps(0.9, str(i)) >= keeps(0.6, str(i))


@pytest.mark.recipe
def test_classifier_tells_text_from_junk_and_is_read_again(tmp_path):
    pytest.importorskip("sklearn", reason="THE CLASSIFIER GOES UNTESTED: make recipe")
    rng = random.Random(0)
    words = ["the", "model", "reads", "a", "text", "and", "writes", "next", "token", "of", "it"]

    def good():
        return " ".join(rng.choices(words, k=60))

    def junk():
        return " ".join(f"{rng.getrandbits(20):x}" for _ in range(60))

    raw = [junk() for _ in range(200)] + [good() for _ in range(10)]
    quality = train_quality([good() for _ in range(60)], raw)
    scores = quality.scores([good(), good().upper(), junk()])
    assert scores[0] > 0.8 and scores[1] > 0.8 and scores[2] < 0.2, "case does not matter"
    quality.save(tmp_path / "model.npy")
    again = Quality.load(tmp_path / "model.npy")
    assert again.weights.shape == (FEATURES,)
    np.testing.assert_array_equal(again.scores(raw), quality.scores(raw))
    with pytest.raises(ConfigError, match="has 0 good and 210 raw texts"):
        train_quality([], raw)


def test_another_file_is_no_classifier(tmp_path):
    np.save(tmp_path / "small.npy", np.zeros(3))
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    for name, why in (("small.npy", "shape"), ("pickled.npy", "allow_pickle"), ("none.npy", "No")):
        with pytest.raises(ConfigError, match=f"cannot be read: .*{why}"):
            Quality.load(tmp_path / name)
