"""The paper's quality classifier and Pareto sampling of documents (Appendix A).

A logistic regression on hashed words distinguishes good text from raw text. A
document is kept if a Pareto variate exceeds 1 - score, so that high scores are
nearly always kept, and low scores sometimes: P(keep) = (2 - score)^-9.

As in the paper: words split by whitespace in lower case, hashed by MurmurHash3 to
2^18 counts (Spark's defaults for Tokenizer and HashingTF), logistic regression,
alpha 9. Where the paper gives no details, counts are scaled to unit length, both
classes have equal weight, and the L2 penalty is scikit-learn's default. Unlike in
the paper, the variate is a hash of the document, so the result is reproducible.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from gpt3jax.data.corpora.documents import hash_key
from gpt3jax.errors import ConfigError

ALPHA = 9.0
"""Of the Pareto distribution; in the paper, it matches the distribution of WebText's scores."""
FEATURES = 2**18


def keep_probability(score: float) -> float:
    """The probability that a document with this score, from 0 to 1, is kept.

    >>> [round(keep_probability(score), 6) for score in (0.0, 0.5, 0.9, 1.0)]
    [0.001953, 0.026012, 0.424098, 1.0]
    """
    return (2.0 - score) ** -ALPHA


def variate(text: str) -> float:
    """A Pareto variate like the paper's `numpy.random.pareto(9)`, from a hash of the text."""
    uniform = (hash_key(f"quality:{text}") + 0.5) / 2**64
    return uniform ** (-1.0 / ALPHA) - 1.0


def keeps(score: float, text: str) -> bool:
    """Whether a document is kept: `pareto(9) > 1 - document_score` in the paper."""
    return variate(text) > 1.0 - score


@dataclass(frozen=True)
class Quality:
    """A trained classifier with weights [FEATURES] and a bias."""

    weights: np.ndarray
    bias: float

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """The score of each text, from 0 to 1: float [texts]."""
        raw = self._features.transform(texts) @ self.weights + self.bias
        return 1.0 / (1.0 + np.exp(-raw))

    def save(self, path: Path) -> None:
        """Write the weights and the bias as one array."""
        with open(path, "wb") as file:
            np.save(file, np.append(self.weights, self.bias), allow_pickle=False)

    @staticmethod
    def load(path: Path) -> Quality:
        """Read what `save` wrote.

        Raises:
          ConfigError: the file cannot be read, or is not a classifier.
        """
        try:
            values = np.load(path, allow_pickle=False)
            if values.shape != (FEATURES + 1,):
                raise ValueError(f"its shape is {values.shape}")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"quality classifier {path} cannot be read: {error}. Train it again"
            ) from error
        return Quality(values[:-1], float(values[-1]))

    @cached_property
    def _features(self) -> Any:
        return _hashing()


def train_quality(good: Iterable[str], raw: Iterable[str]) -> Quality:
    """Fit the classifier.

    Args:
      good: reference texts; in the paper, WebText, Wikipedia and books.
      raw: unfiltered texts.

    Raises:
      ConfigError: either is empty, or scikit-learn is not installed.
    """
    features, good, raw = _hashing(), list(good), list(raw)
    if not good or not raw:
        raise ConfigError(
            f"the quality classifier has {len(good)} good and {len(raw)} raw texts: it learns from "
            "both. Check --reference and --corpus"
        )
    from sklearn.linear_model import LogisticRegression

    is_good = np.repeat([1, 0], [len(good), len(raw)])
    model = LogisticRegression(class_weight="balanced", max_iter=1000)
    model.fit(features.transform(good + raw), is_good)
    return Quality(np.asarray(model.coef_)[0], float(np.asarray(model.intercept_)[0]))


def _hashing() -> Any:
    try:
        from sklearn.feature_extraction.text import HashingVectorizer
    except ImportError:
        raise ConfigError(
            "the quality classifier needs scikit-learn: it is not installed. "
            "pip install 'gpt3jax[recipe]'"
        ) from None
    return HashingVectorizer(
        n_features=FEATURES,
        tokenizer=str.split,
        token_pattern=cast(Any, None),  # Unused; None avoids a warning.
        alternate_sign=False,
    )
