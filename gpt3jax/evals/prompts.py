"""Few-shot prompts: sample demonstrations, encode them, and fit them to the context.

Description, contexts and completions are encoded separately, so that a completion
has the same tokens in a demonstration as when it is scored or generated. As in
the paper (section 2.4), K demonstrations are sampled at random for each example,
by a generator seeded with seed, task, draw and example.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.evals.task import Example, Task


@dataclass(frozen=True)
class PromptedExample:
    """An example with its prompts and completions as token ids."""

    example: Example
    demonstrations: tuple[Example, ...]
    """The demonstrations in the prompt, in order."""
    dropped: int
    """Number of demonstrations that did not fit the context."""
    cut: int
    """Number of tokens cut off the beginning of a prompt that did not fit without them."""
    prompts: tuple[tuple[int, ...], ...]
    """For each context of the example, description, demonstrations and context."""
    completions: tuple[tuple[int, ...], ...]

    @property
    def pairs(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """(prompt, completion) of each candidate."""
        return [(p, c) for p in self.prompts for c in self.completions]  # One of the two is single.


def build_prompts(
    task: Task,
    shots: int,
    tokenizer: Tokenizer,
    context: int,
    *,
    draw: int = 0,
    seed: int = 0,
    shared: bool = False,
    new_tokens: int = 0,
) -> list[PromptedExample]:
    """Build the prompts of every example of a task.

    Args:
      task: the task.
      shots: number of demonstrations, the paper's K.
      tokenizer: of the model.
      context: of the model, in tokens.
      draw: index of the sample of demonstrations.
      seed: of the samples.
      shared: use the same demonstrations for all examples of a group, as the paper does for
        WSC and MultiRC; their common prefix has one prefill.
      new_tokens: tokens to reserve for a generated answer.
    """
    encode = cache(lambda text: tuple(tokenizer.encode(text)))
    fit = partial(_fit, task, encode, tokenizer.end_of_text, context, new_tokens)
    pools: dict[str, list[int]] = {}
    source = task.demonstrations or task.examples
    for index, each in enumerate(source):
        pools.setdefault(each.group, []).append(index)
    prompted = []
    for number, example in enumerate(task.examples):
        pool = pools.get(example.group, [])
        rng = random.Random(f"{seed}/{task.name}/{draw}/{example.group if shared else number}")
        # One more than needed, because the example itself may be among them.
        sample = rng.sample(pool, min(len(pool), shots + 1))
        others = [index for index in sample if task.demonstrations or index != number]
        prompted.append(fit(example, tuple(source[index] for index in others[:shots])))
    return prompted


def _fit(
    task: Task,
    encode: Callable[[str], tuple[int, ...]],
    end_of_text: int,
    context: int,
    new_tokens: int,
    example: Example,
    demonstrations: tuple[Example, ...],
) -> PromptedExample:
    """Drop demonstrations from the first on until all candidates fit the context."""
    completions = tuple(map(encode, example.completions))
    contexts = tuple(map(encode, example.contexts))
    description = encode(task.description)
    longest = max(new_tokens, *map(len, completions))
    room = context - longest - len(description) - max(map(len, contexts))
    empty: tuple[int, ...] = ()
    shown = [sum(map(encode, each.candidates[each.truth]), empty) for each in demonstrations]
    dropped = 0
    while dropped < len(shown) and sum(map(len, shown[dropped:])) > room:
        dropped += 1
    uncut = [description + sum(shown[dropped:], empty) + each for each in contexts]
    prompts = [(each or (end_of_text,))[-(context - longest) :] for each in uncut]
    return PromptedExample(
        example=example,
        demonstrations=demonstrations[dropped:],
        dropped=dropped,
        cut=max(0, max(map(len, uncut)) - (context - longest)),
        prompts=tuple(prompts),
        completions=completions,
    )
