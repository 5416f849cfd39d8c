"""A run's checkpoints, asked the same: what the model guesses as it begins, and as it is trained.

Legend: C checkpoints, W windows, S tokens read of each, T tokens of the prompt's text, k
guesses.
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
    """What every checkpoint is asked, in one shape: padding on the right leaves no trace."""

    text: np.ndarray
    """int [T], the prompt and what was written after it."""
    targets: np.ndarray
    """int [T], what follows each token."""
    windows: np.ndarray | None
    """int [W, S + 1], features and labels; None where the data is not there."""

    def ask(self, params: Params, model: Model) -> dict[str, np.ndarray]:
        """The guesses on the text, and then on each window."""
        windows = [] if self.windows is None else list(self.windows)
        rows = [self.text, *(window[:-1] for window in windows)]
        next_rows = [self.targets, *(window[1:] for window in windows)]
        return guess(params, _padded(rows), _padded(next_rows), model)


def checkpoints_record(
    states: Iterable[tuple[int, Params]], questions: Questions, model: Model
) -> dict[str, Any]:
    """Every checkpoint's guesses, on examples of its training data and on the prompt's text.

    Args:
      states: steps and parameters, one at a time.
      questions: what is asked.
      model: their shape.

    Returns:
      `steps` [C]; `text`, and with windows `examples`, each with `tokens`, `p` [C, ..., k] and
      `target_p` [C, ...].
    """
    steps, found = [], []
    for step, params in states:
        steps.append(step)
        found.append(questions.ask(params, model))
    both = {name: np.stack([each[name] for each in found]) for name in found[0]}
    length = len(questions.text)
    record = {"steps": steps, "text": {name: x[:, 0, :length] for name, x in both.items()}}
    if questions.windows is not None:
        S = questions.windows.shape[1] - 1
        record["windows"] = questions.windows.astype(np.uint32)
        record["examples"] = {name: x[:, 1:, :S] for name, x in both.items()}
    return record


def guess(
    params: Params, tokens_BT: np.ndarray, targets_BT: np.ndarray, model: Model
) -> dict[str, np.ndarray]:
    """The likeliest next tokens and their probabilities, and that of the true one."""
    logits = capture(params, jnp.asarray(tokens_BT, jnp.int32), model, ()).logits
    found = _guess(logits, jnp.asarray(targets_BT, jnp.int32))
    tokens, p, target_p = map(np.asarray, found)
    return {"tokens": tokens.astype(np.uint32), "p": p, "target_p": target_p}


@jax.jit
def _guess(logits, targets):
    p = jax.nn.softmax(logits, -1)
    best, tokens = jax.lax.top_k(p, min(GUESSES, p.shape[-1]))
    return tokens, best, jnp.take_along_axis(p, targets[..., None], -1)[..., 0]


def _padded(rows: list[np.ndarray]) -> np.ndarray:
    longest = max(map(len, rows))
    return np.stack([np.pad(row, (0, longest - len(row))) for row in rows])
