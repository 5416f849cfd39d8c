"""The task of experiments/python_syntax.py, by CPython's own parser."""

import codeop
from collections import Counter
from pathlib import Path

import pytest

from gpt3jax.evals.tasks.files import load_tasks

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def task():
    return load_tasks([str(ROOT / "experiments/python_syntax.py")])[0]


def parses(text):
    """Whether lines of Python have no error so far; they may be incomplete."""
    # Without the last newline, the line that ends a clause is not taken for the end of its block.
    is_clause = text.rstrip("\n").endswith(":")
    try:
        codeop.compile_command(text.strip("\n") + ("" if is_clause else "\n"))
    except SyntaxError:
        return False
    return True


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_the_right_answer_parses_and_the_other_is_a_syntax_error(task):
    for example in task.examples:
        parsed = [parses(context + completion) for context, completion in example.candidates]
        assert parsed == [number == example.truth for number in range(2)], example


def test_questions_are_unique_and_answers_are_on_either_side(task):
    questions = [(example.contexts, example.completions) for example in task.examples]
    assert len(set(questions)) == len(questions) == 400
    assert all(count > 150 for count in Counter(each.truth for each in task.examples).values())
