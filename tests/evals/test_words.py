"""Scrambled words follow the rules of the paper's tasks."""

import itertools
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt3jax import serde
from gpt3jax.errors import ConfigError
from gpt3jax.evals.tasks.table_h1 import PAPER
from gpt3jax.evals.tasks.words import (
    DESCRIPTION,
    MARKS,
    SCRAMBLES,
    read_words,
    scramble,
    words_of,
)

LETTERS = st.text("abcdefghijklmnopqrstuvwxyz", min_size=5, max_size=14)
SOME = ["casino", "sticks", "opponent", "reciprocal", "defeat", "coffee", "hannah"]


def pairs(task):
    """(scramble, word) of each example, from the form of the released files."""
    for example in task.examples:
        scrambled = re.fullmatch(r"\n(.+) =", example.contexts[0])[1]
        yield scrambled, example.completions[0].removeprefix(" ")


def unscramble(name, text, words):
    """The words of a list that a scramble can be of, found by the rule turned round."""
    if name == "reversed_words":
        return {text[::-1]} & words
    if name == "random_insertion_in_word":
        return {text[::2]} & words if set(text[1::2]) <= set(MARKS) else set()
    if name == "cycle_letters_in_word":
        return {text[by:] + text[:by] for by in range(len(text))} & words
    kept = int(name.split("_")[2])
    return {
        word for word in words
        if (word[:kept], word[-kept:]) == (text[:kept], text[-kept:])
        and Counter(word) == Counter(text)
    }  # fmt: skip


@pytest.mark.parametrize("name", SCRAMBLES)
@settings(max_examples=60, deadline=None)
@given(words=st.lists(LETTERS, min_size=1, max_size=8), seed=st.integers(0, 9))
def test_every_scramble_can_be_undone_and_keeps_its_letters(name, words, seed):
    words = [*words, "letters"]
    task = scramble(name, words, seed)
    for text, word in pairs(task):
        letters = text[::2] if "insertion" in name else text
        assert Counter(letters) == Counter(word)
        assert word in unscramble(name, text, set(words))
    asked = [word for _, word in pairs(task)]
    assert asked == [word for word in dict.fromkeys(words) if word in asked], "in their order"


@pytest.mark.parametrize("name", SCRAMBLES[:3])
@settings(max_examples=60, deadline=None)
@given(words=st.lists(LETTERS, min_size=1, max_size=8))
def test_a_scramble_is_not_its_word_where_it_can_be_another(name, words):
    for text, word in pairs(scramble(name, [*words, "letters"])):
        assert text != word or (name == SCRAMBLES[2] and len(set(word[2:-2])) == 1)


def test_words_that_cannot_be_scrambled_are_left_out_as_in_the_released_files():
    asked = {name: [w for _, w in pairs(scramble(name, ["aaaaa", "abbbc", "coffee", "level"]))]
             for name in SCRAMBLES}  # fmt: skip
    assert asked == {
        "cycle_letters_in_word": ["abbbc", "coffee", "level"],
        "mid_word_1_anagrams": ["coffee", "level"],
        "mid_word_2_anagrams": ["coffee"],
        "random_insertion_in_word": ["aaaaa", "abbbc", "coffee", "level"],
        "reversed_words": ["aaaaa", "abbbc", "coffee", "level"],
    }


def test_the_form_is_that_of_the_released_files():
    for name in SCRAMBLES:
        task = scramble(name, SOME)
        assert (task.metric, task.few, task.stop) == ("exact match", 100, "\n")
        assert task.description == DESCRIPTION and task.paper == PAPER[name]
        assert [len(row) for row in task.paper] == [8, 8, 8]
    task = scramble("reversed_words", SOME)
    assert task.examples[4].shown == "\ntaefed = defeat"
    few = [PAPER[name][2][7] for name in SCRAMBLES]
    assert few == [37.9, 15.1, 39.7, 67.2, 0.44]
    text = task.prompt(task.examples[:1], task.examples[4].contexts[0])
    assert text == f"{DESCRIPTION}\nonisac = casino\ntaefed ="


def test_rotations_and_marks_come_as_often_as_each_other():
    letters = itertools.product("abcdefghijkl", repeat=3)
    words = ["abcdef" + "".join(each) + "z" for each in itertools.islice(letters, 600)]
    turned = Counter()
    for text, _ in pairs(scramble("cycle_letters_in_word", words)):
        turned[text.index("z")] += 1  # The only z ends the word: 9 if it was not turned.
    assert sorted(turned) == list(range(9)) and min(turned.values()) > 40
    marks = Counter("".join(text[1::2] for text, _ in pairs(scramble(SCRAMBLES[3], words))))
    assert sorted(marks) == sorted(MARKS) and min(marks.values()) > 0.22 * marks.total()


def test_only_words_of_the_papers_lengths_are_asked_most_frequent_first_each_once():
    given_ = ["a" * 4, "b" * 5, "Upper", "naïve", "don't", "c" * 14, "d" * 15, "b" * 5, "e" * 6]
    asked = [word for _, word in pairs(scramble("reversed_words", given_))]
    assert asked == ["b" * 5, "c" * 14, "e" * 6]
    assert len(scramble("reversed_words", given_, count=2).examples) == 2
    with pytest.raises(ConfigError, match="has no words: none of the 2 given"):
        scramble("reversed_words", ["two", "UPPER"])


def test_the_seed_decides():
    for name in SCRAMBLES[:4]:
        assert scramble(name, SOME) == scramble(name, SOME) != scramble(name, SOME, seed=1)


def test_words_of_texts_are_counted_most_frequent_first():
    texts = ["The cat, the_dog; THE end2end", "café x9 dog cat don't"]
    assert words_of(texts) == ["the", "cat", "dog", "end", "don", "t", "x"]
    assert words_of([]) == []


def test_word_lists_are_read_with_counts_and_without(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("the\t230\nof\t131\nzebra\t7\n\nand\t129\nof\t1\n")
    assert read_words(path) == ["the", "of", "and", "zebra"]
    path.write_text("one\r\ntwo\r\nthree")
    assert read_words(path) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"the 1\nof many\n", "words.txt:2: 'of many' is not a word"),
        (b"the 1 2\n", "words.txt:1: 'the 1 2' is not a word"),
        (b"\xff\xfe", "cannot be read"),
        (None, "No such file"),
    ],
)
def test_word_lists_that_are_none_are_refused(tmp_path, raw, said):
    if raw is not None:
        (tmp_path / "words.txt").write_bytes(raw)
    with pytest.raises(ConfigError, match=said) as error:
        read_words(tmp_path / "words.txt")
    assert "\n" not in str(error.value)


def test_a_word_list_without_end_is_not_read(tmp_path):
    with (tmp_path / "words.txt").open("wb") as file:
        file.truncate(serde.LARGEST + 1)
    with pytest.raises(ConfigError, match="it has 67108865 bytes, over 67108864"):
        read_words(tmp_path / "words.txt")
