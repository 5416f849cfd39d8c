"""Decontamination removes tests from text by the paper's rule."""

import pytest

from gpt3jax.evals.overlap import places_of, words_of
from gpt3jax.evals.task import Example, Task
from gpt3jax.recipe.decontaminate import WINDOW, N, find_grams, grams_of, remove_grams

QUESTION = "Which of the seven old bridges over the river was built before the great fire?"
GRAM = "which of the seven old bridges over the river was built before the"
TASK = Task("bridges", (Example((QUESTION,), (" None",)),), metric="exact match", few=0)
TESTS = grams_of([TASK])
ONCE = dict.fromkeys(TESTS, 1)


def filler(characters: int) -> str:
    return ("some other text without meaning " * characters)[:characters]


def test_words_and_their_places_are_those_of_the_overlap_analysis():
    for text in (
        QUESTION,
        "Didn't 36-30, co_operate?",
        "\u0130stanbul \u01c5 \ufb01ne x\u0301y",
        "",
        "_ -",
    ):
        places = places_of(text)
        assert [word for word, *_ in places] == words_of(text)
        assert all(text[start:end].strip() for _, start, end in places)
    assert places_of("A b-C")[-1] == ("c", 4, 5)


def test_runs_are_of_13_words_of_context_and_answer():
    assert len(TESTS) == 4 and GRAM in TESTS
    assert "seven old bridges over the river was built before the great fire none" in TESTS
    short = Task("short", (Example(("Two words",), (" No",)),), metric="exact match", few=0)
    assert grams_of([short]) == frozenset()


def test_200_characters_go_on_each_side():
    before, after = filler(1000), filler(900)
    text = f"{before} {QUESTION} {after}"
    left = remove_grams(text, TESTS, ONCE)
    assert left == [text[:801], text[1001 + len(QUESTION) - 1 + 200 :]]
    # As typed elsewhere: other case, line ends and punctuation.
    changed = text.replace(QUESTION, QUESTION.upper().replace(" ", ",\n"))
    assert [len(piece) for piece in remove_grams(changed, TESTS, ONCE)] == list(map(len, left))


@pytest.mark.parametrize(("room", "stays"), [(199, 0), (200, 1)])
def test_short_pieces_go(room, stays):
    text = f"{filler(199 + room)} {QUESTION}"
    assert len(find_grams(text, TESTS)) == 3, "its 15 words without the answer"
    assert remove_grams(text, TESTS, ONCE) == [text[:room]] * stays


def test_text_without_a_run_is_left_alone():
    for text in (filler(50), "", QUESTION.rsplit(" ", 3)[0], filler(5000)):
        assert remove_grams(text, TESTS, ONCE) == [text]


@pytest.mark.parametrize(("questions", "left"), [(9, 10), (10, 0)])
def test_a_document_of_more_than_ten_pieces_goes_whole(questions, left):
    text = filler(700) + (QUESTION + " " + filler(700)) * questions
    assert len(remove_grams(text, TESTS, ONCE)) == left


@pytest.mark.parametrize(("documents", "left"), [(10, 2), (11, 1)])
def test_a_run_in_more_than_ten_documents_stays(documents, left):
    text = f"{filler(1000)} {QUESTION} {filler(1000)}"
    assert len(remove_grams(text, TESTS, dict.fromkeys(TESTS, documents))) == left


def test_windows_that_meet_are_one():
    text = f"{filler(500)} {QUESTION} {filler(300)} {QUESTION} {filler(500)}"
    left = remove_grams(text, TESTS, ONCE)
    assert len(left) == 2 and sum(map(len, left)) == len(text) - 2 * len(QUESTION) - 701
    assert WINDOW == 200 and N == 13
