"""`gpt3jax serve`, as it is typed: it says where it is, writes what `generate` writes, and ends."""

import json
import re
import signal
import subprocess
import sys
import urllib.request

import pytest
from building import random_run

from gpt3jax import cli

PATIENCE = 240


@pytest.fixture
def run(experiment, tmp_path):
    return random_run(tmp_path / "small", experiment)


def test_it_serves_what_generate_writes_until_it_is_interrupted(run, capsys):
    # What a shell starts in the background ignores Ctrl-C, and so would what it starts.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from gpt3jax.cli import main; raise SystemExit(main())"
    )
    words = [sys.executable, "-c", program, "serve", str(run.path), "--port", "0", "--rows", "2"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as served:
        try:
            url = re.search(
                r"small is served on (http://127\.0\.0\.1:\d+) ", served.stdout.readline()
            )
            body = {"prompt": "the cat", "max_tokens": 60, "seed": 7, "temperature": 0.8}
            request = urllib.request.Request(
                f"{url[1]}/v1/completions", json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )  # fmt: skip
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                text = json.load(answer)["choices"][0]["text"]
            served.send_signal(signal.SIGINT)
            _, said = served.communicate(timeout=PATIENCE)
        finally:
            served.kill()
    assert served.returncode == 130
    first, *lines = said.splitlines()
    assert first == f"loading {run.path}"
    assert all(re.match(r"compil(ing|ed) .*\b\d+ of \d+ programs", line) for line in lines), said
    assert lines[0].startswith("compiling for a first answer: 0 of ")
    asked = ["--prompt", "the cat", "--new-tokens", "60", "--seed", "7", "--json"]
    assert cli.main(["generate", str(run.path), *asked]) == 0
    assert json.loads(capsys.readouterr().out)["texts"] == [text]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--rows", "3"], "power of two"),
        (["--port", "70000"], "--port is 70000"),
        (["--host", "no.such.host.invalid"], "cannot be listened on"),
        (["--token-file", "empty"], "has no token"),
    ],
)
def test_invalid_flags_are_refused_in_one_line(run, tmp_path, monkeypatch, capsys, words, why):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("\n")
    assert cli.main(["serve", str(run.path), *words]) == 2
    assert re.fullmatch(rf"error: .*{re.escape(why)}.*\n", capsys.readouterr().err)


def test_a_missing_package_is_named(run, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("gpt3jax.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert cli.main(["serve", str(run.path)]) == 2
    assert "pip install 'gpt3jax[serve]'" in capsys.readouterr().err
