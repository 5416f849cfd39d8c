"""The protocol with a model of known answers, and its numbers in results and pages."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from scipy.stats import binomtest

from gpt3jax.data.tokenizer import Tokenizer, train_tokenizer
from gpt3jax.errors import ConfigError
from gpt3jax.evals.page import page
from gpt3jax.evals.plot import plot
from gpt3jax.evals.protocol import Protocol, evaluate
from gpt3jax.evals.scoring import Answer, Scored
from gpt3jax.evals.summary import summarise
from gpt3jax.evals.task import Example, Task


class Reader:
    """In a Scorer's place: it likes what stands in its prompt, and writes its longest word."""

    def __init__(self, tokenizer):
        self.tokenizer, self.model = tokenizer, SimpleNamespace(context=200)

    def score(self, pairs, report=None):
        found = []
        for prompt, completion in pairs:
            good = self.tokenizer.decode(completion) in self.tokenizer.decode(prompt)
            found.append(
                Scored((-1.0 if good else -3.0,) * len(completion), (good,) * len(completion))
            )
        return found

    def answer(self, prompts, *, new_tokens, stop, width, alpha, candidates, report=None):
        texts = (self.tokenizer.decode(prompt) for prompt in prompts)
        words = (max(text.split(), key=len) for text in texts)
        scored = (
            self.score([(prompt, each) for each in completions])
            for prompt, completions in zip(prompts, candidates, strict=True)
        )
        return [
            Answer(tuple(self.tokenizer.encode(f" {word}\n")), -1.0, tuple(scores))
            for word, scores in zip(words, scored, strict=True)
        ]


@pytest.fixture(scope="module")
def reader():
    return Reader(Tokenizer(train_tokenizer(["red green blue is not a colour\n"] * 50, 300)))


COLOURS = ("red", "green", "blue")
CHOICE = Task(
    "choice",
    tuple(Example((f"\n{word}:",), tuple(f" {each}" for each in COLOURS), truth=n)
          for n, word in enumerate(COLOURS)),
    "choice", few=2, normalise="none",
)  # fmt: skip
WRITTEN = Task(
    "written", tuple(Example((f"\nlonger-{n}?",), (f" longer-{n}?",)) for n in range(4)),
    "exact match", few=3, check=lambda text, truth: {"is long": len(text) >= len(truth)},
)  # fmt: skip


def test_a_choice_is_the_likeliest_as_normalised_and_all_is_recorded(reader):
    (setting,) = evaluate(reader, [CHOICE], Protocol(shots=(0,)))
    # Nothing was shown: the answer with the fewest tokens is the likeliest, to each question.
    sizes = [len(reader.tokenizer.encode(f" {word}")) for word in COLOURS]
    assert {each["choice"] for each in setting["examples"]} == {sizes.index(min(sizes))}
    assert setting["score"] == setting["chance"] == pytest.approx(1 / 3)
    record = setting["examples"][0]
    assert record["prompts"] == ["\nred:"] and record["truth"] == 0
    candidate = record["candidates"][0]
    assert candidate["text"] == " red"
    assert candidate["tokens"] == reader.tokenizer.encode(" red")
    total = sum(candidate["log_probabilities"])
    assert candidate["scores"]["none"] == total
    assert candidate["scores"]["token"] == total / len(candidate["tokens"])
    assert candidate["scores"]["character"] == total / 4


def test_demonstrations_help_who_reads_them(reader):
    train = tuple(Example((f"\nlearn {word}:",), (f" {word}",)) for word in COLOURS)
    task = Task("shown", CHOICE.examples, "choice", few=3, normalise="none", demonstrations=train)
    none, one, few = evaluate(reader, [task], Protocol(shots=(0, 1, "few")))
    assert [none["shots"], one["shots"], few["shots"]] == [0, 1, 3]
    assert few["examples"][2]["demonstrations"] == 3
    assert " red" in few["examples"][2]["prompts"][0]


def test_the_answer_context_is_taken_off(reader):
    task = Task("unconditional", CHOICE.examples, "choice", few=0, normalise="answer context",
                answer_context="It is red: red")  # fmt: skip
    (setting,) = evaluate(reader, [task], Protocol(shots=(0,)))
    scores = [each["scores"] for each in setting["examples"][0]["candidates"]]
    size = [len(reader.tokenizer.encode(f" {word}")) for word in COLOURS]
    # " red" is as likely after the answer context as it can be: what is left is its loss.
    assert scores[0]["answer context"] == pytest.approx(-3 * size[0] + size[0])
    assert scores[1]["answer context"] == pytest.approx(0)


def test_written_answers_end_at_the_stop_and_are_compared_whole(reader):
    (setting,) = evaluate(reader, [WRITTEN], Protocol(shots=(0,), beams=2))
    assert setting["metric"] == "exact match" and setting["score"] == 1
    assert setting["examples"][0]["answer"] == " longer-0?"
    assert setting["examples"][0]["checks"] == {"is long": True}


def test_without_beams_an_answer_is_right_when_greedy_decoding_would_write_it(reader):
    shown = Task("greedy", (Example(("\nred? red",), (" red",)), Example(("\nred?",), (" blue",))),
                 "exact match", few=0)  # fmt: skip
    (setting,) = evaluate(reader, [shown], Protocol(shots=(0,), beams=0))
    assert setting["metric"] == "greedy match"
    assert [each["score"] for each in setting["examples"]] == [1, 0]


@pytest.mark.parametrize("task", [CHOICE, WRITTEN], ids=lambda task: task.name)
def test_answers_that_leave_no_place_for_a_question_are_refused(reader, task):
    answers = [reader.tokenizer.encode(text) for each in task.examples for text in each.completions]
    longest = max(map(len, answers))
    small = Reader(reader.tokenizer)
    small.model = SimpleNamespace(context=longest + 1)
    with pytest.raises(
        ConfigError, match=f"answers of {longest} tokens.*context is {longest + 1}:"
    ):
        list(evaluate(small, [task], Protocol(shots=(0,))))
    small.model = SimpleNamespace(context=longest + 2)
    assert list(evaluate(small, [task], Protocol(shots=(0,))))


def test_draws_are_for_demonstrations_only_and_give_an_error_bar(reader):
    settings = list(evaluate(reader, [CHOICE], Protocol(shots=(0, 1), draws=4)))
    assert [(each["shots"], each["draw"]) for each in settings] == [
        (0, 0),
        *((1, n) for n in range(4)),
    ]
    none, one = summarise(settings)
    assert "draw_deviation" not in none and one["draws"] == 4
    means = [each["score"] for each in settings[1:]]
    mean = sum(means) / 4
    assert one["score"] == pytest.approx(mean)
    assert one["draw_deviation"] == pytest.approx(
        math.sqrt(sum((each - mean) ** 2 for each in means) / 3)
    )


def test_an_example_that_is_drawn_twice_is_still_one_example():
    def setting(scores):
        examples = [
            {"score": s, "demonstrations": 0, "dropped": 0, "cut": 0, "truth": 0, "candidates": [
                {"log_probabilities": [-1.0], "is_likeliest": False, "scores": {"none": -1.0}}]}
            for s in scores
        ]  # fmt: skip
        return {"task": "t", "shots": 0, "metric": "exact match", "chance": None,
                "score": sum(scores) / len(scores), "examples": examples}  # fmt: skip

    scores = [1.0] * 30 + [0.0] * 70
    expected = binomtest(30, 100).proportion_ci(0.95, method="wilson")
    for draws in (1, 2):
        (row,) = summarise([setting(scores)] * draws)
        assert row["score"] == pytest.approx(0.3)
        assert row["interval"] == pytest.approx((expected.low, expected.high))


def test_the_page_is_safe_and_shows_the_worst_first(reader):
    hostile = "<script>alert(1)</script>"
    task = Task(hostile, (Example((f"\n{hostile}",), (" x",)), Example(("\nred",), ("red",))),
                "exact match", few=0, paper=((1.0,) * 8, (2.0,) * 8, (30.0,) * 8))  # fmt: skip
    settings = list(evaluate(reader, [task], Protocol(shots=(0,))))
    rows = summarise(settings)
    assert rows[0]["paper_175b"] == pytest.approx(0.01)
    text = page(hostile, rows, settings)
    assert "<script" not in text and "&lt;script&gt;" in text
    assert text.index("<b>wrong</b>") < text.index("<b>right</b>")
    json.dumps(settings), json.dumps(rows)


def test_the_plot_has_a_panel_per_task(reader, tmp_path):
    settings = evaluate(reader, [CHOICE, WRITTEN], Protocol(shots=(0, 1, 2)))
    plot(summarise(list(settings)), tmp_path / "scores.png")
    assert (tmp_path / "scores.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "fields", [{"shots": ()}, {"shots": (-1,)}, {"draws": 0}, {"beams": -1}, {"alpha": math.nan}]
)
def test_protocols_that_cannot_be_followed_are_refused(fields):
    with pytest.raises(ConfigError):
        Protocol(**fields)


def test_answers_that_leave_no_room_are_refused(reader):
    task = Task("long", (Example(("a",), ("b" * 400,)),), "exact match", few=0)
    with pytest.raises(ConfigError, match="more context"):
        list(evaluate(reader, [task], Protocol(shots=(0,))))


def test_few_that_is_one_of_the_numbers_is_asked_once(reader):
    few = replace(CHOICE, few=1)
    settings = list(evaluate(reader, [few], Protocol(shots=(0, 1, "few"))))
    assert [each["shots"] for each in settings] == [0, 1]


def test_several_contexts_are_for_a_choice_only():
    examples = (Example(("a", "b"), ("c",)),)
    assert Task("t", examples, "choice", few=0)
    with pytest.raises(ConfigError, match="only a choice compares contexts"):
        Task("t", examples, "exact match", few=0)
