"""Answers and attention of a model after 0, 1, 4 and 16 demonstrations of a task.

Legend: E examples, T tokens, N layers, H heads, V vocabulary.
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
    on_progress: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """Evaluate every example of a task, as one batch, with each number of demonstrations.

    The first example is shown. The seed draws the demonstrations.

    Returns:
      The `task`, its `source`, and `settings`, each with: the number of demonstrations `asked` for
      and the `shots` that fit the context; per example the probability `p` of the right answer,
      and `greedy`, whether each of its tokens is the most likely; and for the first example its
      `pieces` (text and kind), the `answer`, and `looks` [N, H, pieces], the attention from the
      last token before the answer to each piece.
    """
    settings = []
    questions = [build_prompts(task, shots, tokenizer, model.context, seed=seed) for shots in SHOTS]
    longest = max(
        sum(map(len, question.pairs[question.example.truth]))
        for batch in questions
        for question in batch
    )
    for shots, batch in zip(SHOTS, questions, strict=True):
        on_progress(len(settings) / len(SHOTS))
        settings.append({"asked": shots} | _setting(params, model, tokenizer, task, batch, longest))
    on_progress(1.0)
    return {"task": task.name, "source": task.source, "settings": settings}


def _setting(
    params: Params,
    model: Model,
    tokenizer: Tokenizer,
    task: Task,
    batch: Sequence[PromptedExample],
    T: int,
) -> dict[str, Any]:
    pairs = [question.pairs[question.example.truth] for question in batch]
    tokens_ET = np.zeros((len(pairs), T), np.int32)
    for row, (prompt, completion) in enumerate(pairs):
        tokens_ET[row, : len(prompt) + len(completion)] = (*prompt, *completion)
    # All settings have one shape; padding on the right has no effect, as attention is causal.
    output = capture(params, jnp.asarray(tokens_ET), model, ("queries", "keys"))
    next_ET = jnp.asarray(np.roll(tokens_ET, -1, axis=1))
    log_p_ET, is_best_ET = map(np.asarray, _next_logprobs(output.logits, next_ET))
    spans = [slice(len(prompt) - 1, len(prompt) + len(end) - 1) for prompt, end in pairs]
    pieces, bounds = _pieces(tokenizer, task, batch[0])
    last = len(pairs[0][0]) - 1
    first = {name: value[:, :1] for name, value in output.activations.items()}
    weights = [
        np.asarray(attention_of(first, layer, model))[0, :, last, : last + 1]
        for layer in range(model.n_layers)
    ]
    return {
        "shots": len(batch[0].demonstrations),
        "p": np.exp([row[span].sum() for row, span in zip(log_p_ET, spans, strict=True)]),
        "greedy": [bool(row[span].all()) for row, span in zip(is_best_ET, spans, strict=True)],
        "pieces": pieces,
        "answer": batch[0].example.candidates[batch[0].example.truth][1],
        "looks": np.stack(
            [np.stack([row[:, a:b].sum(-1) for a, b in bounds], -1) for row in weights]
        ).astype(np.float32),
    }


def _pieces(
    tokenizer: Tokenizer, task: Task, question: PromptedExample
) -> tuple[list[dict[str, Any]], list[tuple[int, int]]]:
    """The description, demonstrations and question of a prompt, and their token ranges."""
    example = question.example
    length = len(question.pairs[example.truth][0])
    text = example.candidates[example.truth][0]
    sizes = [
        sum(len(tokenizer.encode(part)) for part in each.candidates[each.truth])
        for each in question.demonstrations
    ]
    end = length - min(length, len(tokenizer.encode(text)))
    start = max(0, end - sum(sizes))
    edges = [start, *(start + np.cumsum(sizes, dtype=int)).tolist()]
    pieces = [{"text": each.shown, "kind": "demonstration"} for each in question.demonstrations]
    bounds = list(zip(edges[:-1], edges[1:], strict=True))
    if start:
        pieces.insert(0, {"text": task.description, "kind": "before"})
        bounds.insert(0, (0, start))
    return [*pieces, {"text": text, "kind": "question"}], [*bounds, (end, length)]


@jax.jit
def _next_logprobs(logits_ETV, next_ET):
    log_p_ETV = jax.nn.log_softmax(logits_ETV)
    log_p_ET = jnp.take_along_axis(log_p_ETV, next_ET[..., None], -1)[..., 0]
    return log_p_ET, log_p_ET >= log_p_ETV.max(-1)
