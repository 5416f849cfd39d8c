"""Few-shot, seen from inside: the same question after 0, 1, 4 and 16 demonstrations.

Legend: K demonstrations, E examples, T tokens, N layers, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt3jax.config import Model
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.evals.prompts import PromptedExample, build_prompts
from gpt3jax.evals.task import Task
from gpt3jax.inspect.capture import attention_of, capture
from gpt3jax.model.init import Params

SHOTS = (0, 1, 4, 16)


def shots_record(
    params: Params,
    model: Model,
    tokenizer: Tokenizer,
    task: Task,
    seed: int = 0,
    tell: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """Ask every example of a task with each number of demonstrations.

    Args:
      params: as `table` describes.
      model: its shape.
      tokenizer: the model's.
      task: with few examples: all of them are read at once, and the first one is shown.
      seed: of the drawing of demonstrations.
      tell: called with the share that is done.

    Returns:
      The `task`, and `settings`: the `shots` that fitted; `p` of the right answer in each
      example, and `greedy`, whether each of its tokens was the likeliest; of the first example its
      `pieces` (text, and whether it is a demonstration), the `answer`, and `looks` [N, H, pieces]:
      how much attention goes from the last token before the answer to each piece.
    """
    settings = []
    asked = [build_prompts(task, shots, tokenizer, model.context, seed=seed) for shots in SHOTS]
    longest = max(
        len(one.pairs[one.example.truth][0]) + len(one.pairs[one.example.truth][1])
        for each in asked for one in each
    )  # fmt: skip
    for shots, each in zip(SHOTS, asked, strict=True):
        tell(len(settings) / len(SHOTS))
        settings.append({"asked": shots} | _setting(params, model, tokenizer, task, each, longest))
    tell(1.0)
    return {"task": task.name, "source": task.source, "settings": settings}


def _setting(
    params: Params,
    model: Model,
    tokenizer: Tokenizer,
    task: Task,
    asked: Sequence[PromptedExample],
    T: int,
) -> dict[str, Any]:
    pairs = [one.pairs[one.example.truth] for one in asked]
    tokens_ET = np.zeros((len(pairs), T), np.int32)
    for row, (prompt, completion) in enumerate(pairs):
        tokens_ET[row, : len(prompt) + len(completion)] = (*prompt, *completion)
    # One shape for all: what pads a row on the right leaves no trace.
    output = capture(params, jnp.asarray(tokens_ET), model, ("queries", "keys"))
    after_ET = jnp.asarray(np.roll(tokens_ET, -1, axis=1))
    log_p_ET, is_best_ET = map(np.asarray, _of_next(output.logits, after_ET))
    spans = [slice(len(prompt) - 1, len(prompt) + len(end) - 1) for prompt, end in pairs]
    pieces, bounds = _pieces(tokenizer, task, asked[0])
    last = len(pairs[0][0]) - 1
    first = _first(output.activations)
    looks = [
        np.asarray(attention_of(first, layer, model))[0, :, last, : last + 1]
        for layer in range(model.n_layers)
    ]
    return {
        "shots": len(asked[0].demonstrations),
        "p": np.exp([row[span].sum() for row, span in zip(log_p_ET, spans, strict=True)]),
        "greedy": [
            bool(row[span].all()) for row, span in zip(is_best_ET, spans, strict=True)
        ],
        "pieces": pieces,
        "answer": asked[0].example.candidates[asked[0].example.truth][1],
        "looks": np.stack(
            [np.stack([row[:, a:b].sum(-1) for a, b in bounds], -1) for row in looks]
        ).astype(np.float32),
    }  # fmt: skip


def _pieces(
    tokenizer: Tokenizer, task: Task, asked: PromptedExample
) -> tuple[list[dict[str, Any]], list[tuple[int, int]]]:
    """The prompt in pieces: what is before, each demonstration, the question; and their tokens."""
    example = asked.example
    length = len(asked.pairs[example.truth][0])
    question = example.candidates[example.truth][0]
    demonstrations = [each.shown for each in asked.demonstrations]
    sizes = [
        sum(len(tokenizer.encode(part)) for part in each.candidates[each.truth])
        for each in asked.demonstrations
    ]
    end = length - min(length, len(tokenizer.encode(question)))
    start = max(0, end - sum(sizes))
    edges = [start, *(start + np.cumsum(sizes, dtype=int)).tolist()]
    pieces = [{"text": text, "kind": "demonstration"} for text in demonstrations]
    bounds = list(zip(edges[:-1], edges[1:], strict=True))
    if start:
        pieces.insert(0, {"text": task.description, "kind": "before"})
        bounds.insert(0, (0, start))
    return [*pieces, {"text": question, "kind": "question"}], [*bounds, (end, length)]


@jax.jit
def _first(activations):
    return {name: value[:, :1] for name, value in activations.items()}


@jax.jit
def _of_next(logits_ETV, next_ET):
    log_p_ETV = jax.nn.log_softmax(logits_ETV)
    log_p_ET = jnp.take_along_axis(log_p_ETV, next_ET[..., None], -1)[..., 0]
    return log_p_ET, log_p_ET >= log_p_ETV.max(-1)
