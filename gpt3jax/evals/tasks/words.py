"""The five word tasks of section 3.9.2: letters are moved or mixed, which word was it?

    cycle_letters_in_word      asinoc = casino       rotated, by any number of letters
    mid_word_1_anagrams        skicts = sticks       all but the first and last letter shuffled
    mid_word_2_anagrams        openopnt = opponent   all but the first and last two
    random_insertion_in_word   c.a s!i/n o = casino  a mark or a space between letters
    reversed_words             taefed = defeat

Words are the most frequent of a list, of more than 4 and fewer than 15 letters. As
in the released files a scramble is another text than its word wherever it can
be; words that cannot be scrambled so (`aaaaa` rotated) are left out, but those
with a middle of equal letters (`coffee`) and palindromes stay, as there.

In the files a question brings the newline before it, and an answer the space
before it.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from gpt3jax import serde
from gpt3jax.config import Data
from gpt3jax.data import loader
from gpt3jax.data.manifest import load_manifest
from gpt3jax.data.pairs import tokens_of
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.errors import ConfigError
from gpt3jax.evals.task import Example, Task

DESCRIPTION = "Please unscramble the letters into a word, and write that word:"
COUNT = 10_000
"""Words of a released file."""
CORPUS_WINDOWS = 20_000
"""Of training data, read for its words."""
FITS = re.compile("[a-z]{5,14}")
MARKS = " ./!"
"""What random insertion inserts, one of them with equal chance."""

_RUNS_OF_LETTERS = re.compile(r"[^\W\d_]+")


def words_of(texts: Iterable[str]) -> list[str]:
    """The words of texts in lower case, most frequent first, then by the alphabet.

    A word is letters a to z with none of another alphabet beside them.
    """
    counts = Counter()
    for text in texts:
        counts.update(_RUNS_OF_LETTERS.findall(text.lower()))
    found = (word for word in counts if word.isascii())
    return sorted(found, key=lambda word: (-counts[word], word))


def words_in(data: Data, context: int, tokenizer: Tokenizer) -> list[str]:
    """The words of prepared training data, as `words_of` gives them; of a large set, of a part."""
    order = loader.windows(data, 0, context)
    there_are = sum(load_manifest(source.path).train_windows for source in data.sources)
    read = range(min(there_are, CORPUS_WINDOWS))
    return words_of(tokenizer.decode(tokens_of(order[i]).tolist()) for i in read)


def read_words(path: str | Path) -> list[str]:
    """The words of a list, most frequent first.

    Args:
      path: a text file with a word a line, most frequent first, or a word and how
        often it occurs (Norvig's `count_1w.txt`), in any order.

    Raises:
      ConfigError: the file cannot be read, or a line is no such thing; it is named.
    """
    try:
        lines = serde.read_bytes(Path(path)).decode().splitlines()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"word list {path} cannot be read: {why}. Check it") from error
    counts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        word, *count = line.split() or [""]
        if len(count) > 1 or not all(each.isdecimal() for each in count):
            raise ConfigError(
                f"{path}:{number}: {line[:40]!r} is not a word, or a word and its count. Mend it"
            )
        if word:
            counts.setdefault(word, int(count[0]) if count else 0)
    return sorted(counts, key=lambda word: -counts[word])


def scramble(name: str, words: Sequence[str], seed: int = 0, count: int = COUNT) -> Task:
    """One of the tasks; the same words and seed ask the same.

    Args:
      name: one of `SCRAMBLES`.
      words: most frequent first; those that do not suit the task are passed over.
      seed: of how letters are moved.
      count: of words, at most.

    Raises:
      ConfigError: no word suits.
    """
    rng, examples = random.Random(f"{name}:{seed}"), []
    for word in dict.fromkeys(words):
        if len(examples) == count:
            break
        scrambled = _RULES[name](rng, word) if FITS.fullmatch(word) else None
        if scrambled is not None:
            examples.append(Example((f"\n{scrambled} =",), (f" {word}",)))
    if not examples:
        raise ConfigError(
            f"task {name} has no words: none of the {len(words)} given has 5 to 14 letters a to z. "
            "Give another list"
        )
    return Task(
        name, tuple(examples), "exact match", few=100, description=DESCRIPTION, paper=PAPER[name],
        source="Brown et al. 2020, section 3.9.2 and Table H.1; form of openai/gpt-3 data/",
    )  # fmt: skip


def _cycle(rng: random.Random, word: str) -> str | None:
    turned = [word[by:] + word[:by] for by in range(1, len(word))]
    return rng.choice([each for each in turned if each != word] or [None])


def _anagram(rng: random.Random, word: str, kept: int) -> str | None:
    middle = word[kept:-kept]
    if len(middle) < 2 or len(set(middle)) == 1:
        # As released: of the anagrams that keep one letter none is its word.
        return word if kept == 2 and len(middle) > 1 else None
    shuffled = middle
    while shuffled == middle:
        shuffled = "".join(rng.sample(middle, len(middle)))
    return word[:kept] + shuffled + word[-kept:]


def _insertion(rng: random.Random, word: str) -> str:
    return "".join(letter + rng.choice(MARKS) for letter in word[:-1]) + word[-1]


_RULES: dict[str, Callable[[random.Random, str], str | None]] = {
    "cycle_letters_in_word": _cycle,
    "mid_word_1_anagrams": lambda rng, word: _anagram(rng, word, 1),
    "mid_word_2_anagrams": lambda rng, word: _anagram(rng, word, 2),
    "random_insertion_in_word": _insertion,
    "reversed_words": lambda rng, word: word[::-1],
}
"""A scrambled word, or None of one that does not suit."""

SCRAMBLES = tuple(_RULES)
"""Names, as of the released files."""

PAPER: dict[str, tuple[tuple[float, ...], ...]] = {
    "cycle_letters_in_word": (
        (0.62, 0.71, 2.85, 0.00, 0.63, 1.35, 2.58, 3.66),
        (1.67, 4.36, 5.68, 6.46, 6.25, 9.41, 15.1, 21.7),
        (4.63, 9.27, 10.7, 14.5, 16.7, 21.9, 27.7, 37.9),
    ),
    "mid_word_1_anagrams": (
        (0.10, 0.14, 0.40, 0.00, 0.27, 0.69, 1.16, 2.28),
        (0.21, 0.61, 1.12, 1.27, 1.60, 2.72, 3.72, 8.62),
        (0.50, 1.27, 2.13, 3.05, 3.81, 5.49, 8.38, 15.1),
    ),
    "mid_word_2_anagrams": (
        (0.81, 1.21, 2.69, 0.01, 1.71, 3.75, 4.53, 8.91),
        (1.19, 2.62, 4.70, 4.77, 6.97, 10.2, 14.6, 25.9),
        (1.94, 4.80, 7.59, 9.87, 12.6, 18.9, 25.6, 39.7),
    ),
    "random_insertion_in_word": (
        (0.00, 0.00, 0.10, 0.00, 0.05, 0.42, 0.89, 8.26),
        (0.03, 0.05, 0.57, 1.18, 1.67, 3.46, 6.62, 45.4),
        (0.11, 0.28, 2.19, 4.18, 6.61, 11.0, 27.3, 67.2),
    ),
    "reversed_words": (
        (0.00, 0.01, 0.01, 0.01, 0.02, 0.03, 0.03, 0.09),
        (0.02, 0.01, 0.01, 0.00, 0.05, 0.07, 0.11, 0.48),
        (0.00, 0.05, 0.00, 0.17, 0.24, 0.30, 0.42, 0.44),
    ),
}
"""Table H.1: zero-, one- and few-shot, each of the eight sizes, in per cent."""
