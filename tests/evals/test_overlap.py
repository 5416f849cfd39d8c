"""The N-gram overlap of examples with training text (Appendix C)."""

import pytest

from gpt3jax.evals.overlap import gram_size, overlap, scores, words_of
from gpt3jax.evals.task import Example, Task

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def task(*texts, name="test"):
    return Task(name, tuple(Example((text,), (" end",)) for text in texts), "choice", few=0)


def test_punctuation_becomes_a_space_and_digits_stay():
    assert words_of("Didn't 36-30, co_operate?") == ["didn", "t", "36", "30", "co", "operate"]


@pytest.mark.parametrize(
    ("lengths", "n"),
    [([3] * 100, 8), ([30] * 100, 13), ([10] * 100, 10), ([9] * 6 + [30] * 94, 9),
     ([9] * 4 + [30] * 96, 13)],
)  # fmt: skip
def test_n_is_the_fifth_percentile_of_lengths_from_8_to_13(lengths, n):
    assert gram_size(lengths) == n


def test_a_generated_task_may_have_short_grams():
    assert gram_size([3] * 100, fewest=2) == 3
    (found,) = overlap([task("s.d r o!w", name="made")], ["a s d r o w end"], {"made"})
    assert found.n == 6 and found.dirty


def test_a_gram_counts_wherever_it_stands_whatever_its_punctuation():
    examples = task(LONG, LONG.replace("five", "5"), "nothing of this is there at all or is it so "
                    "that it might be after all")  # fmt: skip
    (found,) = overlap([examples], ["Well: " + LONG.upper().replace(" ", ", ") + "!"], set())
    # Thirteen words in a row: the second example has no thirteen without its fifth.
    assert found.n == 13 and list(found.dirty) == [0]
    assert found.dirty[0] in " ".join(words_of(LONG))
    assert found.share == pytest.approx(1 / 3)


def test_grams_do_not_cross_documents():
    half = LONG.split()
    (found,) = overlap([task(LONG)], [" ".join(half[:7]), " ".join(half[7:])], set())
    assert not found.dirty


def test_what_is_too_short_for_a_gram_is_counted_as_clean():
    (found,) = overlap([task("too short", *[LONG] * 30)], ["too short end", LONG], set())
    assert found.too_short == 1 and 0 not in found.dirty and len(found.dirty) == 30


def test_scores_are_given_for_clean_and_dirty_apart():
    (found,) = overlap([task(LONG, LONG.replace("five", "5"))], [LONG], set())
    setting = {"examples": [{"score": 1.0}, {"score": 0.0}]}
    assert scores(found, setting) == {"all": 0.5, "clean": 0.0, "dirty": 1.0, "change": -1.0}
