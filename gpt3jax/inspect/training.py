"""Predictions of a run's checkpoints on the same texts.

Legend: C checkpoints, W windows, S tokens of each, B rows, T tokens of the prompt and the
generated text, k predictions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt3jax.config import Model
from gpt3jax.inspect.capture import capture
from gpt3jax.model.init import Params

GUESSES = 3


@dataclass(frozen=True)
class Questions:
    """The texts on which all checkpoints predict, as one batch with padding on the right."""

    text: np.ndarray
    """int [T], the prompt and the generated text."""
    targets: np.ndarray
    """int [T], the next token at each position."""
    windows: np.ndarray | None
    """int [W, S + 1], inputs and labels; None if the data is not available."""

    def ask(self, params: Params, model: Model) -> dict[str, np.ndarray]:
        """Predictions on the text, followed by those on each window, as rows.

        The most likely `tokens` and their probabilities `p`, [B, T, k], and the probability of
        the next token, `target_p` [B, T].
        """
        windows = [] if self.windows is None else list(self.windows)
        tokens_BT = _padded([self.text, *(window[:-1] for window in windows)])
        targets_BT = _padded([self.targets, *(window[1:] for window in windows)])
        logits_BTV = capture(params, tokens_BT, model, ()).logits
        tokens, p, target_p = map(np.asarray, _guess(logits_BTV, targets_BT))
        return {"tokens": tokens.astype(np.uint32), "p": p, "target_p": target_p}


def checkpoints_record(
    states: Iterable[tuple[int, Params]], questions: Questions, model: Model
) -> dict[str, Any]:
    """Predictions of all checkpoints on the text and on windows of the training data.

    `states` are steps and parameters, one checkpoint in memory at a time.

    Returns:
      `steps` [C]; `text`, and with windows `examples`, each with `tokens`, `p` [C, ..., k] and
      `target_p` [C, ...].
    """
    steps, predictions = [], []
    for step, params in states:
        steps.append(step)
        predictions.append(questions.ask(params, model))
    stacked = {name: np.stack([each[name] for each in predictions]) for name in predictions[0]}
    length = len(questions.text)
    record = {"steps": steps, "text": {name: x[:, 0, :length] for name, x in stacked.items()}}
    if questions.windows is not None:
        S = questions.windows.shape[1] - 1
        record["windows"] = questions.windows.astype(np.uint32)
        record["examples"] = {name: x[:, 1:, :S] for name, x in stacked.items()}
    return record


@jax.jit
def _guess(logits, targets):
    p = jax.nn.softmax(logits, -1)
    best, tokens = jax.lax.top_k(p, min(GUESSES, p.shape[-1]))
    return tokens, best, jnp.take_along_axis(p, targets[..., None], -1)[..., 0]


def _padded(rows: list[np.ndarray]) -> jax.Array:
    longest = max(map(len, rows))
    return jnp.array([np.pad(row, (0, longest - len(row))) for row in rows], jnp.int32)
