"""What is typed: help at once, mistakes refused in one line, nothing heavy imported for either."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from building import random_run

from gpt3jax import cli
from gpt3jax.errors import ConfigError

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "experiments/tiny.py")


@pytest.fixture
def gpt3jax(capsys, monkeypatch, tmp_path):
    """Run a command line in this process: exit code, stdout, stderr."""
    monkeypatch.setattr("gpt3jax.runtime.memory.retain_freed_memory", lambda: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words):
        try:
            code = cli.main(words)
        except SystemExit as leaving:
            code = leaving.code
        return code, *capsys.readouterr()

    return run


def python(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_the_module_prints_help_and_exits_0():
    done = python("-m", "gpt3jax", "--help")
    assert done.returncode == 0
    for command in cli.COMMANDS:
        assert f"gpt3jax {command}" in done.stdout


def test_help_and_refusals_do_not_import_jax(prepared):
    """Each command line in turn, in one process of its own."""
    lines = [
        ["--help"], ["--version"], ["trane"], ["train", "--help"], ["generate", "--help"],
        ["train", TINY, "--help"], ["train", TINY, "--model.n-layers", "0"],
        ["train", TINY, "--seed", "-1"], ["train", "none.py"],
        ["train", TINY, "--data.sources.0.path", str(prepared)],
        ["train", TINY, "--data.sources.0.path", "nowhere"],
        ["plan", TINY, "--chips", "v5e:2x2"], ["plan", TINY], ["plan", TINY, "--budget", "10"],
        ["export", "--help"], ["import", "--help"], ["export", "runs/a", "--to", "onnx"],
        ["serve", "--help"], ["serve", "runs/a", "--rows", "3"],
        ["serve", "runs/a", "--token-file", "none"],
    ]  # fmt: skip
    script = (
        "import sys\nfrom gpt3jax.cli import main\n"
        f"for words in {lines!r}:\n"
        "    try:\n        code = main(words)\n"
        "    except SystemExit as leaving:\n        code = leaving.code\n"
        "    heavy = {'jax', 'flax', 'grain', 'orbax'} & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)\n"
        "    print('code', code)\n"
    )
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
    codes = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("code ")]
    assert "".join(codes) == "00200022222020002022"


@pytest.mark.parametrize("platform", ["cuda", "none"])
def test_a_platform_that_jax_cannot_use_is_one_line_from_every_command(
    experiment, tmp_path, platform
):
    if platform == "cuda" and find_spec("jax_plugins"):
        pytest.skip("jax's plugin is installed")
    run = str(random_run(tmp_path / "run", experiment).path)
    (tmp_path / "file.py").write_text(
        "from gpt3jax.config import Experiment\n\n\ndef experiment():\n"
        f"    return Experiment.from_json({experiment.to_json()!r})\n"
    )
    file = str(tmp_path / "file.py")
    lines = [
        ["train", file, "--run", str(tmp_path / "new")], ["train", file, "--run", run],
        ["bench", "train", file], ["bench", "decode", file], ["bench", "save", file],
        ["generate", run, "--prompt", "a"], ["inspect", run, "--prompt", "a"],
        ["evaluate", run, "--tasks", "arithmetic"], ["perplexity", run],
        ["verify", run, "--replay", "4:5"], ["verify", run], ["serve", run, "--port", "0"],
        ["export", run, "--to", "stablehlo", "--out", str(tmp_path / "out")],
    ]  # fmt: skip
    script = (
        "import sys\nfrom gpt3jax.cli import main\n"
        f"for words in {lines!r}:\n    print('code', main(words), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120,
        env={**os.environ, "JAX_PLATFORMS": platform}, cwd=ROOT,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    # Beside warnings and progress.
    said = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "code "))]
    for line, words in zip(said[::2], lines, strict=True):
        assert line.startswith(f"error: JAX_PLATFORMS is '{platform}', which jax cannot"), words
        assert "plugin" in line if platform == "cuda" else "'none' is not in the list" in line
        assert line.endswith(
            ". Unset JAX_PLATFORMS, or install jax for it, e.g. jax[cuda13] or jax[tpu]"
        )
    assert said[1::2] == ["code 2"] * len(lines)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself(gpt3jax, command):
    code, out, err = gpt3jax(*command.split(), "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: gpt3jax {command}")
    assert cli.COMMANDS[command].__doc__.splitlines()[0] in out


def test_no_words_print_what_there_is_to_type(gpt3jax):
    assert gpt3jax() == gpt3jax("--help") == (0, cli.usage() + "\n", "")


def test_every_field_that_scripts_rely_on_can_be_overridden(gpt3jax):
    code, out, _ = gpt3jax("train", TINY, "--help")
    assert code == 0
    shown = set(out.split())
    assert shown >= {
        "--run", "--model.n-layers", "--model.n-heads", "--model.d-head", "--model.d-model",
        "--model.context", "--model.vocabulary", "--train.steps", "--train.batch-tokens", "--seed",
    }  # fmt: skip


def test_overrides_reach_the_experiment(tmp_path):
    words = [TINY, "--model.n-layers", "2", "--train.steps", "7", "--seed", "3", "--run", "there"]
    values = cli.parse("train", words)
    made = values["experiment"]
    assert (made.model.n_layers, made.train.steps, made.seed) == (2, 7, 3)
    assert made.model.d_model == 128, "what is not named stays"
    assert values["run"] == Path("there")


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("--model.n-layer", "--model.n-layers"),
        ("--model.d-modell", "--model.d-model"),
        ("--train.batch-token", "--train.batch-tokens"),
        ("--optimizer.bb1", "--optimizer.b1"),
    ],
)
def test_a_misspelt_override_names_the_nearest(gpt3jax, wrong, near):
    code, _, err = gpt3jax("train", TINY, wrong, "3")
    assert code == 2
    suggestions = err.split("Perhaps you meant")[1]
    assert near in suggestions.split()


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("trane", "train"), ("generat", "generate"), ("data prepar", "data prepare")],
)
def test_an_unknown_command_names_the_nearest(gpt3jax, wrong, near):
    code, out, err = gpt3jax(*wrong.split())
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and f"`gpt3jax {near}`" in err
    assert err.count("\n") == 1


def refused(result, names):
    """Exit code 2 and one short `error:` line that names what is wrong."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
    assert len(err) < 300 + len("error: \n")
    assert names in err


@pytest.mark.parametrize(
    "line",
    [
        "--model.n-layers 0",
        "--model.n-heads -6",
        "--model.n-heads 5",
        "--model.d-head 7",
        "--model.band 0",
        "--model.dense-every 0",
        "--model.vocabulary 1",
        "--model.init-std nan",
        "--model.d-model 20000000 --model.d-head 20000000 --model.n-heads 1",
        "--schedule.peak-learning-rate nan",
        "--schedule.peak-learning-rate inf",
        "--schedule.peak-learning-rate -1",
        "--schedule.decay-tokens 5",
        "--optimizer.b2 1",
        "--optimizer.clip-norm 0",
        "--train.batch-tokens 1000",
        "--train.batch-tokens 0",
        "--train.microbatch 5",
        "--train.microbatch -1",
        "--train.steps 0",
        "--train.tokens 0",
        "--seed -1",
        "--seed 4294967296",
    ],
)
def test_absurd_values_are_refused(gpt3jax, line):
    refused(gpt3jax("train", TINY, *line.split()), names=line.split()[0])


@pytest.mark.parametrize("line", ["--mesh.data 0", "--mesh.tensor -2", "--mesh.fsdp -1"])
def test_absurd_meshes_are_refused(gpt3jax, line):
    refused(gpt3jax("train", TINY, *line.split()), names="mesh")


@pytest.mark.parametrize(
    "line", ["--mesh.pipeline 2", "--model.remat some", "--model.dtype float4", "--seed abc"]
)
def test_unknown_axes_choices_and_words_for_numbers_exit_2(gpt3jax, line):
    code, out, err = gpt3jax("train", TINY, *line.split())
    assert (code, out) == (2, "")
    assert line.split()[0] in err


def test_a_context_that_is_not_the_datas_is_refused(gpt3jax, prepared):
    result = gpt3jax("train", TINY, "--data.sources.0.path", str(prepared))
    refused(result, names="--model.context 48")


def test_data_that_is_not_there_is_refused(gpt3jax):
    refused(gpt3jax("train", TINY, "--data.sources.0.path", "nowhere"), names="nowhere")


def test_files_that_are_no_experiment_are_refused(gpt3jax, tmp_path):
    (tmp_path / "empty.py").write_text("")
    refused(gpt3jax("train", "missing.py"), names="missing.py")
    refused(gpt3jax("train", "empty.py"), names="empty.py has no function experiment()")
    refused(gpt3jax("train", "README.md"), names="needs an experiment file")
    refused(gpt3jax("train"), names="needs an experiment file")
    refused(gpt3jax("bench", "train"), names="needs an experiment file")


def test_a_folder_that_is_no_run_is_refused(gpt3jax, tmp_path):
    refused(gpt3jax("generate", "nowhere"), names="nowhere is not a run")
    refused(gpt3jax("report", "nowhere"), names="nowhere")
    refused(gpt3jax("data", "show", "nowhere"), names="nowhere")


@pytest.mark.parametrize(
    "line",
    [
        "--temperature -1",
        "--temperature nan",
        "--top-k -1",
        "--top-p 0",
        "--top-p 1.5",
        "--new-tokens 0",
        "--samples 0",
        "--beams -1",
        "--prompt a --prompt-file b",
    ],
)
def test_absurd_sampling_is_refused_before_anything_is_read(gpt3jax, line):
    refused(gpt3jax("generate", "nowhere", *line.split()), names=line.split()[0])


def test_a_prompt_file_that_is_not_there_is_the_users_mistake(gpt3jax):
    refused(gpt3jax("generate", "nowhere", "--prompt-file", "none.txt"), names="none.txt")


def test_debug_shows_where_an_error_comes_from(gpt3jax):
    with pytest.raises(ConfigError, match="--model.n-layers"):
        gpt3jax("train", TINY, "--model.n-layers", "0", "--debug")


def test_a_failure_is_one_line_with_its_kind_and_exit_code_1(gpt3jax, monkeypatch):
    def fail(**_):
        raise OSError("disk\nfull")

    monkeypatch.setitem(cli.COMMANDS, "report", fail)
    monkeypatch.setattr(cli, "parse", lambda name, words: {})
    code, out, err = gpt3jax("report", "x")
    assert (code, out) == (1, "")
    assert err == "error: OSError: disk full (--debug prints a traceback)\n"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_what_every_command_imports_is_there(command):
    """Commands import inside; a missing module would only show when somebody runs it."""
    import ast
    import importlib
    import importlib.util
    import inspect

    def is_there(module, name):
        found = hasattr(importlib.import_module(module), name)
        return found or importlib.util.find_spec(f"{module}.{name}") is not None

    tree = ast.parse(inspect.getsource(cli.COMMANDS[command]))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert all(is_there(node.module, alias.name) for alias in node.names)
