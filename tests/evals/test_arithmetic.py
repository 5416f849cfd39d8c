"""Arithmetic questions have the format of the released files, and right answers."""

import re

import pytest

from gpt3jax.errors import ConfigError
from gpt3jax.evals.tasks.arithmetic import ARITHMETIC, arithmetic
from gpt3jax.evals.tasks.table_h1 import PAPER
from gpt3jax.evals.tasks.words import SCRAMBLES

WORDS = {"plus": "+", "minus": "-", "times": "*"}
DIGITS = {"two": 2, "three": 3, "four": 4, "five": 5}


@pytest.fixture(scope="module")
def tasks():
    return {name: arithmetic(name) for name in ARITHMETIC}


def expressions(task):
    """What is asked, without the words around it."""
    form = r"\n\nQ: What is ([^?]+)\?\n\nA:"
    return [re.fullmatch(form, example.contexts[0])[1] for example in task.examples]


def test_the_ten_tasks_are_those_of_the_paper(tasks):
    assert len(ARITHMETIC) == 10 and {*ARITHMETIC, *SCRAMBLES} == set(PAPER)
    for name, task in tasks.items():
        assert (task.name, task.metric, task.few, task.stop) == (name, "exact match", 50, "\n")
        assert [len(row) for row in task.paper] == [8, 8, 8]
        assert task.description == "" and not task.demonstrations
    # The 175B column of Table 3.9, few-shot, in the order of its tasks.
    few = {name: task.paper[2][7] for name, task in tasks.items()}
    assert few == {
        "two_digit_addition": 100.0, "two_digit_subtraction": 98.9, "three_digit_addition": 80.4,
        "three_digit_subtraction": 94.2, "four_digit_addition": 25.5,
        "four_digit_subtraction": 26.8, "five_digit_addition": 9.3, "five_digit_subtraction": 9.9,
        "two_digit_multiplication": 29.2, "single_digit_three_ops": 21.3,
    }  # fmt: skip


@pytest.mark.parametrize("name", ARITHMETIC)
def test_each_asks_2000_different_questions_and_knows_the_answer(tasks, name):
    found = expressions(tasks[name])
    assert len(found) == len(set(found)) == 2000
    for expression, example in zip(found, tasks[name].examples, strict=True):
        for word, sign in WORDS.items():
            expression = expression.replace(word, sign)
        assert re.fullmatch(r"[\d() +*-]+", expression)
        assert example.completions == (f" {eval(expression)}",)
        assert not re.search(r"\b0\d", expression), "no zero stands in front"


@pytest.mark.parametrize("name", [name for name in ARITHMETIC if "ops" not in name])
def test_operands_are_uniform_below_ten_to_their_digits(tasks, name):
    size = 10 ** DIGITS[name.split("_")[0]]
    pairs = [re.fullmatch(r"(\d+) \w+ (\d+)", e).groups() for e in expressions(tasks[name])]
    for operands in zip(*pairs, strict=True):
        values = [int(each) for each in operands]
        assert 0 <= min(values) < size // 50 and size - size // 50 < max(values) < size
        assert 0.46 < sum(values) / len(values) / size < 0.54
        # The lowest and highest tenth as often as the others: 200 each, deviation 13.
        assert 140 < sum(each < size // 10 for each in values) < 260
    if name.endswith("subtraction"):
        negative = sum(example.completions[0][1] == "-" for example in tasks[name].examples)
        assert 900 < negative < 1100


def test_three_ops_have_brackets_around_the_first_two_and_no_zero(tasks):
    form = r"\(([1-9]) ([-+*]) ([1-9])\) ([-+*]) ([1-9])"
    found = [re.fullmatch(form, each).groups() for each in expressions(tasks[ARITHMETIC[-1]])]
    signs = [first + second for _, first, _, second, _ in found]
    assert len(set(signs)) == 9 and all(160 < signs.count(each) < 290 for each in set(signs))


def test_a_demonstration_and_a_question_read_as_in_the_paper():
    task = arithmetic("two_digit_addition", count=2)
    first, second = task.examples
    text = task.prompt([first], second.contexts[0])
    form = r"\n\nQ: What is \d+ plus \d+\?\n\nA: \d+\n\nQ: What is \d+ plus \d+\?\n\nA:"
    assert re.fullmatch(form, text)


def test_the_seed_decides_and_a_shorter_task_is_the_beginning_of_a_longer(tasks):
    for name in ("three_digit_addition", "single_digit_three_ops"):
        whole = tasks[name].examples
        assert arithmetic(name).examples == whole and arithmetic(name, 1).examples != whole
        assert arithmetic(name, count=70).examples == whole[:70]


def test_more_questions_than_there_are_is_refused():
    assert len(arithmetic("single_digit_three_ops", count=6561).examples) == 6561
    with pytest.raises(ConfigError, match="6,561 different questions, not 6,562"):
        arithmetic("single_digit_three_ops", count=6562)
