"""Demonstrations come from the right pool, exclude the question, and fit the context."""

import pytest

from gpt3jax.data.tokenizer import Tokenizer, train_tokenizer
from gpt3jax.errors import ConfigError
from gpt3jax.evals.prompts import build_prompts
from gpt3jax.evals.task import Example, Task, exact_match, f1


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(train_tokenizer(["\nQ: number 1 is 2 and 34567890\nA: of\n"] * 50, 300))


def numbers(count, **fields):
    examples = tuple(Example((f"\nQ: {n}\nA:",), (f" {n + 1}",)) for n in range(count))
    return Task("numbers", examples, "exact match", few=4, **fields)


def test_a_prompt_is_description_demonstrations_and_question(tokenizer):
    task = numbers(20, description="Add 1.")
    for number, asked in enumerate(build_prompts(task, 3, tokenizer, 400)):
        shown = "".join(each.shown for each in asked.demonstrations)
        text = f"Add 1.{shown}\nQ: {number}\nA:"
        assert (
            tokenizer.decode(asked.prompts[0])
            == text
            == task.prompt(asked.demonstrations, task.examples[number].contexts[0])
        )
        assert len(set(asked.demonstrations)) == 3 and asked.example not in asked.demonstrations


def test_with_a_training_set_nothing_of_the_test_is_shown(tokenizer):
    train = tuple(Example((f"\nQ: {n}\nA:",), (f" {n + 1}",)) for n in range(100, 110))
    task = numbers(20, demonstrations=train)
    assert all(
        set(each.demonstrations) <= set(train) for each in build_prompts(task, 5, tokenizer, 400)
    )
    # An example may be asked that the training set also has.
    same = numbers(20, demonstrations=numbers(20).examples)
    assert any(
        each.example in each.demonstrations for each in build_prompts(same, 19, tokenizer, 4000)
    )


def test_draws_are_recorded_by_seed_and_differ_by_example(tokenizer):
    task = numbers(30)

    def shown(**how):
        return [each.demonstrations for each in build_prompts(task, 4, tokenizer, 400, **how)]

    assert shown() == shown()
    assert shown(draw=1) != shown() != shown(seed=1)
    assert len(set(shown())) > 20
    assert len(set(shown(shared=True))) <= 5, "the same ones, but where one is itself asked"


def test_demonstrations_come_from_the_same_group(tokenizer):
    examples = tuple(
        Example((f"\n{n}",), (f" {n % 3}",), group=str(n % 3)) for n in range(30)
    )  # fmt: skip
    for asked in build_prompts(Task("groups", examples, "exact match", 5), 5, tokenizer, 400):
        assert {each.group for each in asked.demonstrations} == {asked.example.group}
        assert len(asked.demonstrations) == 5


def test_what_does_not_fit_is_dropped_whole_and_counted(tokenizer):
    whole = build_prompts(numbers(20), 10, tokenizer, 1000)
    context = len(whole[0].prompts[0]) - 20
    for before, asked in zip(
        whole, build_prompts(numbers(20), 10, tokenizer, context), strict=True
    ):
        assert asked.dropped > 0 and asked.cut == 0
        assert asked.demonstrations == before.demonstrations[asked.dropped :]
        assert len(asked.prompts[0]) + len(asked.completions[0]) <= context
        one_more = before.demonstrations[asked.dropped - 1].shown
        size = len(asked.prompts[0]) + len(asked.completions[0]) + len(tokenizer.encode(one_more))
        assert size > context, "no more was dropped than had to be"


def test_a_question_that_is_too_long_by_itself_is_cut_at_its_beginning(tokenizer):
    (asked,) = build_prompts(
        Task("long", (Example(("a long, long story: x",), (" y",)),), "exact match", 0), 0,
        tokenizer, 8, new_tokens=3,
    )  # fmt: skip
    assert len(asked.prompts[0]) == 5 and asked.cut > 0
    assert tokenizer.decode(asked.prompts[0]).endswith("x")


def test_partial_evaluation_asks_one_completion_after_each_context(tokenizer):
    example = Example((" the ball", " the box"), (" is red",), truth=1)
    (asked,) = build_prompts(Task("partial", (example,), "choice", 0), 0, tokenizer, 100)
    assert [tokenizer.decode(prompt) for prompt, _ in asked.pairs] == [" the ball", " the box"]
    assert {completion for _, completion in asked.pairs} == {tuple(tokenizer.encode(" is red"))}
    assert example.shown == " the box is red"


@pytest.mark.parametrize(
    "fields",
    [
        {"contexts": (), "completions": ("a",)},
        {"contexts": ("a",), "completions": ()},
        {"contexts": ("a", "b"), "completions": ("c", "d")},
        {"contexts": ("a",), "completions": ("b",), "truth": 1},
        {"contexts": ("a",), "completions": ("b", "")},
    ],
    ids=str,
)
def test_examples_that_make_no_sense_are_refused(fields):
    with pytest.raises(ConfigError):
        Example(**fields)


def test_answers_are_compared_as_the_paper_does():
    assert exact_match(" 143 ", (" 143",)) == 1
    assert exact_match("1430", (" 143",)) == 0
    assert f1("the red ball", ("a red ball", "blue")) == pytest.approx(2 * 2 / 6)
    assert f1("", ("x",)) == 0
