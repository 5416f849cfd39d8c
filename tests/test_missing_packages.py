"""Programs that need packages which are not there: what they say, in a line, and how they end."""

import re
import subprocess
import sys

import pytest

from gpt3jax.interchange import stablehlo


def run_without(package, code, *words):
    """Exit code, output and errors of a program for which a package is not installed."""
    code = f"import runpy, sys; sys.modules[{package!r}] = None; {code}"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=280
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("words", [[], ["--help"], ["--model", "gpt3jax"]])
def test_the_harness_without_lm_eval_names_what_to_install(words):
    code = "runpy.run_module('gpt3jax.evals.lm_eval', run_name='__main__')"
    rc, out, error = run_without("lm_eval", code, *words)
    assert (rc, out) == (2, "")
    assert re.fullmatch(
        r"error: the harness needs the package lm_eval\S* pip install 'gpt3jax\[eval\]'\n", error
    )


@pytest.fixture
def script(tmp_path):
    """run.py of exported programs."""
    (tmp_path / "run.py").write_text(stablehlo.SCRIPT)
    return f"runpy.run_path({str(tmp_path / 'run.py')!r}, run_name='__main__')"


@pytest.mark.parametrize(
    ("words", "expected"), [(["--help"], 0), (["-h"], 0), ([], 2), (["ten"], 2), (["5", "a"], 2)]
)
def test_exported_programs_say_how_they_are_called_without_jax(script, words, expected):
    rc, out, error = run_without("jax", script, *words)
    assert (rc, error) == (expected, "") and "python run.py NEW-TOKENS [ID ...]" in out


@pytest.mark.parametrize("package", ["jax", "flatbuffers"])
def test_exported_programs_name_what_to_install(script, package):
    rc, out, error = run_without(package, script, "5")
    assert (rc, out) == (2, "")
    assert re.fullmatch(rf"error: run.py needs the package {package}\S* pip install .*\n", error)
