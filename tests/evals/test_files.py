"""Tasks from files and by name; errors name file and line."""

import gzip
import json

import pytest

from gpt3jax import serde
from gpt3jax.errors import ConfigError
from gpt3jax.evals.task import Example
from gpt3jax.evals.tasks.arithmetic import ARITHMETIC, arithmetic
from gpt3jax.evals.tasks.files import load_tasks, read_jsonl
from gpt3jax.evals.tasks.words import SCRAMBLES

CAPITALS = [
    {"context": f"\n{country} ->", "completion": f" {capital}"}
    for country, capital in [("France", "Paris"), ("Italy", "Rome"), ("Peru", "Lima")]
]
CHOICE = {"context": "Water is", "choices": [" wet", " dry"], "truth": 0, "group": "w"}
PARTIAL = {"contexts": ["The cup", "The bag"], "completion": " fell.", "truth": 1}

# Ten lines that describe a task, as a user would write them.
DESCRIBED = '''
"""Capitals: a country and its capital."""
from pathlib import Path

from gpt3jax.evals.tasks.files import read_jsonl


def task():
    return read_jsonl(
        Path(__file__).with_name("capitals.jsonl"),
        few=2, description="Name the capital.", source="by hand",
    )
'''.lstrip()


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def capitals(tmp_path):
    return write(tmp_path / "capitals.jsonl", CAPITALS)


def test_a_released_file_is_read_plain_and_packed(capitals):
    task = read_jsonl(capitals, few=2)
    assert (task.name, task.metric, task.few) == ("capitals", "exact match", 2)
    assert [each.shown for each in task.examples] == ["\nFrance -> Paris", "\nItaly -> Rome",
                                                      "\nPeru -> Lima"]  # fmt: skip
    packed = capitals.with_suffix(".jsonl.gz")
    packed.write_bytes(gzip.compress(capitals.read_bytes()))
    assert read_jsonl(packed, few=2) == task


def test_a_task_reads_back_as_the_file_it_was_written_to(tmp_path):
    made = arithmetic("five_digit_subtraction", count=50)
    rows = [{"context": e.contexts[0], "completion": e.completions[0]} for e in made.examples]
    assert read_jsonl(write(tmp_path / "x.jsonl", rows)).examples == made.examples


def test_several_answers_choices_and_partial_evaluation(tmp_path):
    accepted = {"context": "Q:", "completion": [" a", " b"], "group": "g"}
    task = read_jsonl(write(tmp_path / "a.jsonl", [accepted]))
    assert task.examples == (Example(("Q:",), (" a", " b"), group="g"),)
    task = read_jsonl(write(tmp_path / "b.jsonl", [CHOICE]), normalise="answer context")
    assert (task.metric, task.normalise) == ("choice", "answer context")
    assert task.examples == (Example(("Water is",), (" wet", " dry"), 0, "w"),)
    task = read_jsonl(write(tmp_path / "c.jsonl", [PARTIAL]), name="cups")
    assert (task.name, task.metric) == ("cups", "choice")
    assert task.examples[0].candidates == [("The cup", " fell."), ("The bag", " fell.")]


def without(row, key):
    return {name: value for name, value in row.items() if name != key}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "Expecting property name"),
        ("[1]", "it is .1., not an object"),
        ("NaN", "NaN is not a number"),
        ("[" * 100_000, "nested"),
        (b"\xff", "invalid start byte"),
        (without(CAPITALS[0], "context"), "context is missing"),
        (without(CAPITALS[0], "completion"), "completion is missing"),
        (CAPITALS[0] | {"context": 3}, "context is 3, not text"),
        (CAPITALS[0] | {"completion": 3}, "completion is 3, not"),
        (CAPITALS[0] | {"completion": [" a", 3]}, "completion is"),
        (CAPITALS[0] | {"completion": []}, "0 completions"),
        (CAPITALS[0] | {"completion": ""}, "empty completion"),
        (CAPITALS[0] | {"completion": [" a", ""]}, "empty completion"),
        (CAPITALS[0] | {"completion": " \ud800"}, "surrogates not allowed"),
        (CAPITALS[0] | {"answer": " a"}, "answer is not known"),
        (CHOICE, "another form than the previous lines"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path, line, said):
    path = tmp_path / "tasks.jsonl"
    raw = line if isinstance(line, bytes) else line if isinstance(line, str) else json.dumps(line)
    raw = raw if isinstance(raw, bytes) else raw.encode()
    path.write_bytes(json.dumps(CAPITALS[1]).encode() + b"\n\n" + raw + b"\n")
    with pytest.raises(ConfigError, match=rf"tasks\.jsonl:3: .*{said}.*Correct the line") as error:
        read_jsonl(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (CHOICE | {"truth": 2}, "truth is 2"),
        (CHOICE | {"truth": -1}, "truth is -1, not a count"),
        (CHOICE | {"truth": 10**30}, "not a count"),
        (CHOICE | {"truth": True}, "truth is true, not a count"),
        (CHOICE | {"choices": " wet"}, "choices is"),
        (CHOICE | {"choices": []}, "0 completions"),
        (without(CHOICE, "truth"), "truth is missing"),
        (PARTIAL | {"completion": [" fell."]}, "completion is"),
        (PARTIAL | {"contexts": []}, "0 contexts"),
        (PARTIAL | {"context": "The"}, "context is not known"),
    ],
)
def test_choices_that_are_wrong_are_named(tmp_path, row, said):
    with pytest.raises(ConfigError, match=rf"x\.jsonl:1: .*{said}"):
        read_jsonl(write(tmp_path / "x.jsonl", [row]))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    bomb, cut, plain = (tmp_path / f"{name}.jsonl.gz" for name in ("bomb", "cut", "plain"))
    bomb.write_bytes(gzip.compress(b"\n" * (serde.LARGEST + 1), 1))
    assert bomb.stat().st_size < 1 << 20
    cut.write_bytes(gzip.compress(b'{"context": "a", "completion": " b"}')[:-12])
    plain.write_bytes(b'{"context": "a", "completion": " b"}')
    with (tmp_path / "huge.jsonl").open("wb") as file:
        file.truncate(serde.LARGEST + 1)
    (tmp_path / "empty.jsonl").write_text("\n")
    for name, said in {
        "bomb.jsonl.gz": "decompressed, it has over 67108864 bytes",
        "cut.jsonl.gz": "cannot be read",
        "plain.jsonl.gz": "Not a gzipped file", "huge.jsonl": "67108865 bytes, over",
        "empty.jsonl": "has no examples", "none.jsonl": "No such file", ".": "not a regular file",
    }.items():  # fmt: skip
        with pytest.raises(ConfigError, match=said) as error:
            read_jsonl(tmp_path / name)
        assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_ten_lines_of_python_describe_a_task(capitals):
    path = capitals.with_name("capitals.py")
    path.write_text(DESCRIBED)
    (task,) = load_tasks([str(path)])
    assert (task.name, task.few, task.source) == ("capitals", 2, "by hand")
    prompt = task.prompt(task.examples[:2], task.examples[2].contexts[0])
    assert prompt == "Name the capital.\nFrance -> Paris\nItaly -> Rome\nPeru ->"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def task():\n    return 3\n", r"x\.py: task\(\) returned int"),
        ("x = 1\n", r"x\.py has no function task"),
        ("def task():\n    raise SystemExit(3)\n", r"x\.py:2: SystemExit"),
        ("import gpt3jax.evals.tasks.files as f\ndef task():\n    return f.read_jsonl('0.jsonl')\n",
         r"x\.py:3: task file 0\.jsonl cannot be read"),
    ],
)  # fmt: skip
def test_a_task_in_python_that_is_wrong_is_refused(tmp_path, text, said):
    (tmp_path / "x.py").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_tasks([str(tmp_path / "x.py")])


def words():
    return ["casino", "sticks", "opponent", "reciprocal", "defeat"]


def test_names_of_kinds_stand_for_all_of_them_once_and_in_order():
    found = load_tasks(["patterns", "reversed_words", "scrambles", "arithmetic"], words, count=3)
    rest = [name for name in SCRAMBLES if name != "reversed_words"]
    assert [task.name for task in found] == [
        "substitution", "hidden_rule", "reversed_words", *rest, *ARITHMETIC,
    ]  # fmt: skip


def test_words_are_asked_for_once_and_only_for_scrambles():
    calls = []

    def counted():
        calls.append(1)
        return words()

    load_tasks(["two_digit_addition", "substitution"], counted)
    assert not calls
    load_tasks(["scrambles"], counted)
    assert len(calls) == 1
    with pytest.raises(ConfigError, match="reversed_words needs words to scramble"):
        load_tasks(["reversed_words"])


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("two_digit_additon", "two_digit_addition"),
        ("pattern", "patterns"),
        ("", ""),
        ("x" * 999, ""),
    ],
)
def test_an_unknown_name_says_the_nearest(name, near):
    with pytest.raises(ConfigError, match=f"is not known: the nearest is {near}") as error:
        load_tasks([name])
    assert len(str(error.value)) < 250


def test_a_count_asks_a_sample_and_leaves_the_others_to_demonstrate(tmp_path):
    (whole,), (some,) = (load_tasks(["two_digit_addition"], count=c) for c in (None, 100))
    assert len(some.examples) == 100 and len(some.demonstrations) == 1900
    assert set(some.examples) | set(some.demonstrations) == set(whole.examples)
    assert some.examples != whole.examples[:100]
    assert load_tasks(["two_digit_addition"], count=100) == [some]
    (other,) = load_tasks(["two_digit_addition"], count=100, seed=1)
    assert not set(other.examples) <= set(whole.examples)
    # Too few would be left: those that are asked demonstrate each other.
    (most,) = load_tasks(["two_digit_addition"], count=1960)
    assert len(most.examples) == 1960 and most.demonstrations == ()
    (pattern,) = load_tasks(["substitution"], count=7)
    assert len(pattern.examples) == 7 and len(pattern.demonstrations) == 8000
    for count in (0, -1):
        with pytest.raises(ConfigError, match=f"{count} examples per task"):
            load_tasks(["substitution"], count=count)


def test_of_a_file_the_first_are_asked_and_groups_stay_whole_enough(tmp_path):
    rows = [CAPITALS[i % 3] | {"group": str(i // 50)} for i in range(200)]
    path = str(write(tmp_path / "x.jsonl", rows))
    (task,) = load_tasks([path], count=10)
    assert task.examples == read_jsonl(path).examples[:10] and len(task.demonstrations) == 190
    (task,) = load_tasks([path], count=30)
    assert len(task.examples) == 30 and task.demonstrations == (), "20 are left of group 0, not 32"
