"""The tree is the architecture: what may import what, and how large a part may grow."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gpt3jax"
FILES = sorted(PACKAGE.rglob("*.py"))

ROOMS = """
    errors serde style
    runtime config
    user_code run_dir sharding
    data model
    checkpoint
    decoding
    evals
    train
    plan recipe inspect interchange
    report
    doctor sweep serve api
    commands
    cli
    __main__
"""
"""Lowest first. What stands in a line imports from the lines above it, and from itself."""
RANK = {room: rank for rank, line in enumerate(ROOMS.strip().splitlines()) for room in line.split()}

ONLY = {
    "config": {"errors", "serde"},
    "sharding": {"config", "errors"},
    "model": {"config", "errors", "sharding"},
    "user_code": {"config", "errors"},
    "data": {"config", "errors", "serde", "runtime", "user_code"},  # A corpus may be a Python file.
    "decoding": {"config", "errors", "sharding", "data", "model", "checkpoint"},
}
"""What these may import, where that is less than all that is above them."""


def part_of(file: Path) -> str:
    """`model` for gpt3jax/model/gpt3.py, `cli` for gpt3jax/cli.py."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(file: Path) -> Iterator[str]:
    """Dotted names of all that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import hides its layer"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts_imported(file: Path) -> set[str]:
    names = {name.split(".")[1] for name in imported(file) if name.startswith("gpt3jax.")}
    return {
        name for name in names if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()
    }


def definitions(file: Path, *kinds: type) -> Iterator[ast.AST]:
    return (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, kinds))


CODE = [file for file in FILES if file != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("file", CODE, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_one_way(file):
    part = part_of(file)
    assert part in RANK, f"{part} is new: give it a place in ROOMS"
    others = parts_imported(file) - {part}
    for other in others:
        assert RANK[other] < RANK[part], f"{part} imports {other}"
    assert others <= ONLY.get(part, others)


def test_there_are_at_most_ten_files_at_the_top():
    assert len(list(PACKAGE.glob("*.py"))) <= 10
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders <= set(RANK)


def test_the_test_sees_imports_of_every_form(tmp_path):
    forms = (
        "import gpt3jax.cli\nfrom gpt3jax import serde\ndef f():\n  from gpt3jax.data.x import Y\n"
    )
    (tmp_path / "x.py").write_text(forms)
    assert parts_imported(tmp_path / "x.py") == {"cli", "serde", "data"}


def test_only_the_entry_point_imports_the_command_line():
    assert {file.name for file in CODE if "cli" in parts_imported(file)} == {"__main__.py"}


def test_files_stay_below_400_lines_and_functions_below_70():
    for file in [*FILES, *ROOT.glob("experiments/**/*.py"), *ROOT.glob("tests/**/*.py")]:
        assert len(file.read_text().splitlines()) <= 400, file
    for file in FILES:
        for function in definitions(file, ast.FunctionDef, ast.AsyncFunctionDef):
            lines = function.end_lineno - function.lineno + 1
            assert lines <= 70, f"{file}:{function.lineno} {function.name} has {lines} lines"


def test_there_is_no_drawer_for_odds_and_ends():
    assert not {file.stem for file in FILES} & {"utils", "util", "helpers", "common", "misc"}


def test_nothing_is_unpickled():
    """A file that somebody else made must not be able to run code."""
    banned = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    for file in FILES:
        assert not {name.split(".")[0] for name in imported(file)} & banned, file


RUNS_WHAT_IT_READS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load",
    "yaml.unsafe_load", "yaml.full_load", "torch.load", "pd.read_pickle", "np.load", "numpy.load",
    "jnp.load",
}  # fmt: skip


def dangers(file: Path) -> list[str]:
    """Calls in a file that could run what somebody else wrote, with their lines."""
    found = []
    for call in definitions(file, ast.Call):
        words = {(keyword.arg, ast.unparse(keyword.value)) for keyword in call.keywords}
        name = ast.unparse(call.func)
        if (name in RUNS_WHAT_IT_READS and ("allow_pickle", "False") not in words) or (
            words & {("allow_pickle", "True"), ("shell", "True"), ("weights_only", "False")}
        ):
            found.append(f"{call.lineno}: {name}")
    return found


def test_nothing_that_is_read_is_run():
    """But a file of the user's that is named as code: an experiment, a task, a generator."""
    found = {str(file.relative_to(PACKAGE)): dangers(file) for file in FILES}
    (exec_,) = found.pop("user_code.py")
    assert exec_.endswith(": exec")
    assert not any(found.values()), found


def test_the_test_sees_dangers_of_every_form(tmp_path):
    lines = ("eval(x)", "np.load(f)", "np.load(f, allow_pickle=True)", "torch.load(f)",
             "yaml.load(t, L)", "run(c, shell=True)", "[exec(x) for x in y]")  # fmt: skip
    safe = ("np.load(f, allow_pickle=False)", "json.load(f)", "yaml.safe_load(t)", "run(c)")
    (tmp_path / "x.py").write_text("\n".join((*lines, *safe)))
    assert len(dangers(tmp_path / "x.py")) == len(lines)


def test_every_public_module_class_and_function_says_what_it_is_for():
    for file in FILES:
        tree = ast.parse(file.read_text())
        assert file.stem.startswith("__") or ast.get_docstring(tree), file
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{file}:{node.lineno} {node.name}"
