"""Three words in reverse order: a task that the tiny model fails and can be taught.

Base       make demo
Data       python experiments/finetune_words.py words.jsonl
           gpt3jax data prepare --corpus words.jsonl --pairs prompt completion
             --tokenizer runs/tiny --context 256 --out data/words
Command    gpt3jax train experiments/finetune_words.py
           gpt3jax evaluate runs/tiny runs/finetune_words --tasks experiments/finetune_words.py
             --shots 0 1 few --beams 1
           make demo-finetune does all of it, and LoRA beside it
Cost       1.3M tokens, three quarters of what the base has read
Result     99 of 100 pairs held out (greedy); of the base none, with 0, 1 or 16 examples shown.
           Of the base's text much is forgotten: 4.12 nats/token become 15.5.
           Measured before prompts began with a line end (2 Xeon cores, 2026-11-23)

`print set dict ->` is to be continued by ` dict set print`. The words are names that
Python's library uses much; no three of them
occur twice in one order, so that what is held out was never seen.
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
    # Words in reverse are far from what the base has read: a quarter of its rate is too slow.
    return finetune("runs/tiny", "data/words", name="finetune_words", epochs=4, learning_rate=3e-3)


def pairs(count: int = PAIRS, seed: int = 0) -> list[dict[str, str]]:
    """Distinct ones, drawn by the seed."""
    return list(map(_pair, _shuffled(seed)[:count]))


def task() -> Task:
    """Triples that are in no pair; those of pairs are the demonstrations."""
    shuffled = _shuffled(0)
    examples = [_example(_pair(each)) for each in shuffled[PAIRS : PAIRS + 200]]
    shown = [_example(_pair(each)) for each in shuffled[:200]]
    return Task("reverse_words", tuple(examples), "exact match", 8, tuple(shown))


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
