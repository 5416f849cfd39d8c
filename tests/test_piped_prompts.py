"""Prompts that are given, in a file, or piped: what a command reads, and when."""

import json
import os
import pty
import subprocess
import sys

import pytest
from building import changed, random_run

from gpt3jax import cli
from gpt3jax.commands import generate
from gpt3jax.inspect import record


@pytest.fixture
def read(monkeypatch):
    """(*words) -> the prompt that a command takes; what is computed of it is left out."""
    taken = []
    monkeypatch.setattr(generate, "write", lambda run, prompt, **_: taken.append(prompt))
    monkeypatch.setattr(
        record, "inspect_run", lambda run, settings, **_: taken.append(settings.prompt)
    )
    monkeypatch.setattr(record, "write_page", lambda *_: 0)

    def read(*words):
        assert cli.main(list(words)) == 0
        return taken.pop()

    return read


@pytest.fixture
def standard_input():
    """(file descriptor) -> it is standard input until the test is over."""
    before = os.dup(0)
    yield lambda descriptor: os.dup2(descriptor, 0)
    os.dup2(before, 0)
    os.close(before)


def file_of(tmp_path, data):
    (tmp_path / "input").write_bytes(data)
    return os.open(tmp_path / "input", os.O_RDONLY)


COMMANDS = pytest.mark.parametrize("command", ["generate", "inspect"])


@COMMANDS
@pytest.mark.parametrize("words", [[], ["--prompt", "-"]])
def test_what_is_piped_is_the_prompt_as_it_is(command, words, read, standard_input, tmp_path):
    standard_input(file_of(tmp_path, "import os\n  caf\u00e9\n".encode()))
    assert read(command, "run", *words) == "import os\n  caf\u00e9\n"


@COMMANDS
def test_a_prompt_that_is_given_goes_before_standard_input(command, read, standard_input, tmp_path):
    standard_input(file_of(tmp_path, b"not this"))
    assert read(command, "run", "--prompt", "this") == "this"
    assert read(command, "run", "--prompt", "") == ""
    if command == "generate":
        (tmp_path / "file").write_text("a file's")
        assert read(command, "run", "--prompt-file", str(tmp_path / "file")) == "a file's"


@COMMANDS
def test_of_nothing_piped_and_of_a_terminal_the_prompt_is_empty(
    command, read, standard_input, monkeypatch
):
    standard_input(os.open(os.devnull, os.O_RDONLY))
    assert read(command, "run") == ""
    _, terminal = pty.openpty()  # Nobody types: to read it would wait for ever.
    standard_input(terminal)
    assert read(command, "run") == ""
    standard_input(os.open(os.devnull, os.O_WRONLY))
    monkeypatch.setattr(sys, "stdin", None)  # So Python has it where it is closed.
    assert read(command, "run") == ""


@COMMANDS
@pytest.mark.parametrize("data", [b"\xff\xfe", b"x" * (2 << 20)], ids=["no text", "endless"])
def test_input_that_cannot_be_a_prompt_is_refused_in_a_line(
    command, data, standard_input, tmp_path, capsys
):
    standard_input(file_of(tmp_path, data))
    assert cli.main([command, "run"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the prompt on standard input ") and said.count("\n") == 1


def test_a_pipe_writes_what_the_flag_writes(experiment, tmp_path):
    run = random_run(tmp_path / "run", changed(experiment, model={"n_layers": 1}))
    words = [sys.executable, "-m", "gpt3jax", "generate", str(run.path), "--json", "--seed", "3"]

    def texts(*more, given):
        done = subprocess.run([*words, *more], input=given, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    piped, flag = texts(given="the cat"), texts("--prompt", "the cat", given="")
    assert piped == flag and flag["prompt"] == "the cat"
    assert texts(given="")["texts"] != flag["texts"]


def test_more_samples_than_beams_are_refused(capsys):
    assert cli.main(["generate", "run", "--prompt", "", "--beams", "2", "--samples", "3"]) == 2
    assert "--samples is 3: 2 beams give at most as many samples" in capsys.readouterr().err
