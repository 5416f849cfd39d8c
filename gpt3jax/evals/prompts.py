"""From an example to what the model reads: demonstrations drawn, encoded, and made to fit.

Every piece is encoded apart (description, contexts, completions), so that a
completion has the same tokens in a demonstration as when it is scored or
written. The paper draws K demonstrations at random for each example (section
2.4); here by a generator seeded with seed, task, draw and example.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.evals.task import Example, Task


@dataclass(frozen=True)
class Asked:
    """An example as it is put to the model."""

    example: Example
    demonstrations: tuple[Example, ...]
    """Those that fit, in the order shown."""
    dropped: int
    """Demonstrations left out, whole, because the prompt did not fit the context."""
    cut: int
    """Tokens cut off its beginning, because even without them it did not."""
    prompts: tuple[tuple[int, ...], ...]
    """Token ids of each of the example's contexts, in front of it all that precedes it."""
    completions: tuple[tuple[int, ...], ...]
    """Token ids."""

    @property
    def pairs(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """(prompt, completion) of each candidate."""
        if len(self.prompts) > 1:
            return [(prompt, self.completions[0]) for prompt in self.prompts]
        return [(self.prompts[0], completion) for completion in self.completions]


def ask(
    task: Task,
    shots: int,
    tokenizer: Tokenizer,
    context: int,
    *,
    draw: int = 0,
    seed: int = 0,
    shared: bool = False,
    new_tokens: int = 0,
) -> list[Asked]:
    """Put every example of a task into words, with `shots` demonstrations each.

    Args:
      task: what is asked.
      shots: K.
      tokenizer: of the model.
      context: tokens that the model sees.
      draw: which drawing of demonstrations; each is another sample of them.
      seed: of the drawings.
      shared: draw once for all examples of a group, as the paper does for WSC and MultiRC;
        such a beginning is read by the model once.
      new_tokens: room to leave for a generated answer.
    """
    pieces = _Pieces(tokenizer)
    pools: dict[str, list[int]] = {}
    source = task.demonstrations or task.examples
    for place, each in enumerate(source):
        pools.setdefault(each.group, []).append(place)
    asked = []
    for number, example in enumerate(task.examples):
        pool = pools.get(example.group, [])
        rng = random.Random(f"{seed}/{task.name}/{draw}/{example.group if shared else number}")
        # One more, in case the example itself is among them.
        drawn = rng.sample(pool, min(len(pool), shots + 1))
        others = [place for place in drawn if task.demonstrations or place != number]
        chosen = tuple(source[place] for place in others[:shots])
        asked.append(_fit(task, example, chosen, pieces, context, new_tokens))
    return asked


def _fit(
    task: Task,
    example: Example,
    demonstrations: tuple[Example, ...],
    encode: _Pieces,
    context: int,
    new_tokens: int,
) -> Asked:
    """Drop whole demonstrations, the first ones first, until all candidates fit."""
    completions = tuple(map(encode, example.completions))
    contexts = tuple(map(encode, example.contexts))
    description = encode(task.description)
    longest = max(new_tokens, *map(len, completions))
    room = context - longest - len(description) - max(map(len, contexts))
    shown = [sum(map(encode, each.candidates[each.truth]), ()) for each in demonstrations]
    dropped = 0
    while dropped < len(shown) and sum(map(len, shown[dropped:])) > room:
        dropped += 1
    wholes = [description + sum(shown[dropped:], ()) + each for each in contexts]
    prompts = [(each or (encode.end_of_text,))[-(context - longest) :] for each in wholes]
    return Asked(
        example=example,
        demonstrations=demonstrations[dropped:],
        dropped=dropped,
        cut=max(0, max(map(len, wholes)) - (context - longest)),
        prompts=tuple(prompts),
        completions=completions,
    )


class _Pieces:
    """Texts to token ids, each encoded once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, tuple[int, ...]] = {}
        self.end_of_text = tokenizer.end_of_text

    def __call__(self, text: str) -> tuple[int, ...]:
        if text not in self._known:
            self._known[text] = tuple(self._tokenizer.encode(text))
        return self._known[text]
