"""The five word scrambling tasks of section 3.9.2.

    cycle_letters_in_word      asinoc = casino       rotated, by any number of letters
    mid_word_1_anagrams        skicts = sticks       all but the first and last letter shuffled
    mid_word_2_anagrams        openopnt = opponent   all but the first and last two
    random_insertion_in_word   c.a s!i/n o = casino  a mark or a space between letters
    reversed_words             taefed = defeat

Words are the most frequent of a list, with more than 4 and fewer than 15 letters.
As in the released files, a scrambled word differs from the word where possible;
words for which it cannot differ (`aaaaa` rotated) are skipped, but words with a
middle of equal letters (`coffee`) and palindromes are not.

As in the files, a question begins with a newline, and an answer with a space.
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
from gpt3jax.evals.tasks.table_h1 import PAPER

DESCRIPTION = "Please unscramble the letters into a word, and write that word:"
COUNT = 10_000
"""Number of words in a released file."""
CORPUS_WINDOWS = 20_000
"""Maximum training windows that are read for their words."""
FITS = re.compile("[a-z]{5,14}")
MARKS = " ./!"
"""The characters that random insertion inserts, with equal probability."""

_RUNS_OF_LETTERS = re.compile(r"[^\W\d_]+")


def words_of(texts: Iterable[str]) -> list[str]:
    """The words of texts in lower case, most frequent first, then alphabetically.

    A word is a maximal run of letters in which all are from a to z.
    """
    counts = Counter()
    for text in texts:
        counts.update(_RUNS_OF_LETTERS.findall(text.lower()))
    ascii_words = (word for word in counts if word.isascii())
    return sorted(ascii_words, key=lambda word: (-counts[word], word))


def words_in(data: Data, context: int, tokenizer: Tokenizer) -> list[str]:
    """The words (see `words_of`) of training data, of at most `CORPUS_WINDOWS` windows."""
    order = loader.windows(data, 0, context)
    available = sum(load_manifest(source.path).train_windows for source in data.sources)
    indices = range(min(available, CORPUS_WINDOWS))
    return words_of(tokenizer.decode(tokens_of(order[i]).tolist()) for i in indices)


def read_words(path: str | Path) -> list[str]:
    """Read a word list, most frequent first.

    Args:
      path: a text file with a word per line, most frequent first, or a word and its
        count per line (Norvig's `count_1w.txt`), in any order.

    Raises:
      ConfigError: the file cannot be read, or a line is invalid; its number is given.
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
                f"{path}:{number}: {line[:40]!r} is not a word, or a word and its count. Correct it"
            )
        if word:
            counts.setdefault(word, int(count[0]) if count else 0)
    return sorted(counts, key=lambda word: -counts[word])


def scramble(name: str, words: Sequence[str], seed: int = 0, count: int = COUNT) -> Task:
    """A word scrambling task; it is a deterministic function of its arguments.

    Args:
      name: one of `SCRAMBLES`.
      words: most frequent first; unsuitable words are skipped.
      seed: of the scrambling.
      count: maximum number of words.

    Raises:
      ConfigError: no word is suitable.
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
        name=name,
        examples=tuple(examples),
        metric="exact match",
        few=100,
        description=DESCRIPTION,
        paper=PAPER[name],
        source="Brown et al. 2020, section 3.9.2 and Table H.1; form of openai/gpt-3 data/",
    )


def _cycle(rng: random.Random, word: str) -> str | None:
    rotations = [word[by:] + word[:by] for by in range(1, len(word))]
    return rng.choice([each for each in rotations if each != word] or [None])


def _anagram(rng: random.Random, word: str, fixed: int) -> str | None:
    """Shuffle all but the first and last `fixed` letters."""
    middle = word[fixed:-fixed]
    if len(middle) < 2 or len(set(middle)) == 1:
        # As released: no example of mid_word_1_anagrams equals its word.
        return word if fixed == 2 and len(middle) > 1 else None
    shuffled = middle
    while shuffled == middle:
        shuffled = "".join(rng.sample(middle, len(middle)))
    return word[:fixed] + shuffled + word[-fixed:]


def _insertion(rng: random.Random, word: str) -> str:
    return "".join(letter + rng.choice(MARKS) for letter in word[:-1]) + word[-1]


_RULES: dict[str, Callable[[random.Random, str], str | None]] = {
    "cycle_letters_in_word": _cycle,
    "mid_word_1_anagrams": lambda rng, word: _anagram(rng, word, 1),
    "mid_word_2_anagrams": lambda rng, word: _anagram(rng, word, 2),
    "random_insertion_in_word": _insertion,
    "reversed_words": lambda rng, word: word[::-1],
}
"""Functions that return the scrambled word, or None for an unsuitable word."""

SCRAMBLES = tuple(_RULES)
"""Names of the tasks, as in the released files."""
