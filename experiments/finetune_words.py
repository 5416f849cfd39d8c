"""Fine-tune the tiny model to reverse the order of three words, which it cannot do before.

Base       make demo
Data       python experiments/finetune_words.py words.jsonl
           gpt3jax data prepare --corpus words.jsonl --pairs prompt completion
             --tokenizer runs/tiny --context 256 --out data/words
Command    gpt3jax train experiments/finetune_words.py
           gpt3jax evaluate runs/tiny runs/finetune_words --tasks experiments/finetune_words.py
             --shots 0 1 few --beams 1
           make demo-finetune runs all of these, and LoRA
Cost       1.3M tokens, three quarters of the base's
Result     99 of 100 held-out pairs (greedy); the base has none, with 0, 1 or 16 demonstrations.
           Forgetting is severe: the loss on the base's text rises from 4.12 to 15.5 nats/token.
           Measured before prompts began with a newline (2 Xeon cores, 2026-11-23)

The completion of `print set dict ->` is ` dict set print`. The words are frequent
names in Python's library. All triples are distinct, so that held-out ones are unseen.
"""

import itertools
import json
import random
import sys

from finetune import finetune

from gpt3jax.evals.task import Example, Task

WORDS = (
    "add", "all", "any", "bytes", "copy", "count", "dict", "dir", "encode", "find", "format",
    "get", "getattr", "hasattr", "help", "id", "index", "input", "int", "iter", "len", "list",
    "max", "min", "next", "object", "open", "print", "range", "replace", "set", "sort", "str",
    "tuple", "type", "values",
)  # fmt: skip
PAIRS = 40_000


def experiment():
    # The task is far from the base's text: a quarter of its learning rate is too slow.
    return finetune("runs/tiny", "data/words", name="finetune_words", epochs=4, learning_rate=3e-3)


def pairs(count: int = PAIRS, seed: int = 0) -> list[dict[str, str]]:
    """The first `count` of all pairs, shuffled by the seed."""
    return list(map(_pair, _shuffled(seed)[:count]))


def task() -> Task:
    """200 triples that are not in `pairs()`, with demonstrations from `pairs()`."""
    shuffled = _shuffled(0)
    examples = [_example(_pair(each)) for each in shuffled[PAIRS : PAIRS + 200]]
    demonstrations = [_example(_pair(each)) for each in shuffled[:200]]
    return Task("reverse_words", tuple(examples), "exact match", 8, tuple(demonstrations))


def _shuffled(seed: int) -> list[tuple[str, ...]]:
    triples = list(itertools.permutations(WORDS, 3))
    return random.Random(seed).sample(triples, len(triples))


def _pair(words: tuple[str, ...]) -> dict[str, str]:
    return {"prompt": "\n" + " ".join(words) + " ->", "completion": " " + " ".join(reversed(words))}


def _example(pair: dict[str, str]) -> Example:
    return Example((pair["prompt"],), (pair["completion"],))


if __name__ == "__main__":
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        file.writelines(json.dumps(pair) + "\n" for pair in pairs())
