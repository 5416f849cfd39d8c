"""Programs are compiled once per user: kept, found again, whole, and not too many."""

import dataclasses
import os
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import pytest
from building import changed

from gpt3jax.cli import main
from gpt3jax.config import Mesh
from gpt3jax.doctor import machine
from gpt3jax.runtime import compilation_cache
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.train.step import compile_train_step

PROGRAM = """
from gpt3jax.runtime.compilation_cache import enable_compilation_cache
enable_compilation_cache()
import jax
print(jax.jit(lambda x: x * 3 + 1)(4.0))
"""


def run(home, program=PROGRAM, **variables):
    """In a new process of a user who lives there: what it says, and the files it leaves."""
    env = {k: v for k, v in os.environ.items() if "CACHE" not in k}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env | {"HOME": str(home)} | variables,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "13.0\n"
    return done.stderr, {path.name: path.stat().st_mtime_ns for path in home.rglob("*-cache")}


def test_a_program_is_compiled_once(tmp_path):
    said, first = run(tmp_path)
    assert said == "" and any("lambda" in name for name in first)
    folder = next(tmp_path.rglob("*-cache")).parent
    assert folder.parent == tmp_path / ".cache/gpt3jax" and folder.stat().st_mode & 0o77 == 0
    assert run(tmp_path) == ("", first)
    wordy = PROGRAM.replace("import jax", "import jax; jax.config.update('jax_log_compiles', 1)")
    assert "Persistent compilation cache hit for 'jit__lambda'" in run(tmp_path, wordy)[0]


def test_jax_s_own_variables_go_first(tmp_path):
    other = tmp_path / "other"
    _, files = run(tmp_path, JAX_COMPILATION_CACHE_DIR=str(other),
                   JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")  # fmt: skip
    assert {path.parent for path in tmp_path.rglob("*-cache")} == {other} and files
    assert run(tmp_path / "home", JAX_ENABLE_COMPILATION_CACHE="0") == ("", {})


def test_runs_that_differ_in_name_and_length_share_a_step(experiment):
    """It is traced once in a process; what the step computes with is not shared."""
    mesh = make_mesh(experiment.mesh, jax.devices()[:1])
    step = compile_train_step(experiment, mesh)
    longer = changed(experiment, train={"steps": 99, "save_every": 3})
    assert compile_train_step(dataclasses.replace(longer, name="longer"), mesh) is step
    assert compile_train_step(dataclasses.replace(experiment, seed=1), mesh) is not step
    for change in (
        {"model": {"remat": "full"}}, {"optimizer": {"b2": 0.99}},
        {"train": {"only": ("*/bias",)}}, {"train": {"microbatch": 2}},
    ):  # fmt: skip
        assert compile_train_step(changed(experiment, **change), mesh) is not step
    assert compile_train_step(experiment, make_mesh(Mesh(data=8))) is not step


def test_who_has_no_room_compiles_every_time(tmp_path):
    (tmp_path / ".cache").write_text("a file")
    assert run(tmp_path) == ("", {})
    assert run(tmp_path, XDG_CACHE_HOME="/proc/nowhere") == ("", {})


def test_half_a_program_is_thrown_away_and_compiled_again(tmp_path):
    _, first = run(tmp_path)
    for path in tmp_path.rglob("*-cache"):
        path.write_bytes(path.read_bytes()[:100])
    said, again = run(tmp_path)
    assert said == "" and set(again) == set(first)
    assert all(zlib.decompress(path.read_bytes()) for path in tmp_path.rglob("*-cache"))


def test_only_new_files_are_checked_and_the_oldest_go(tmp_path, monkeypatch):
    for age in range(5):
        path = tmp_path / f"{age}-cache"
        path.write_bytes(zlib.compress(bytes(1000), level=0))
        os.utime(path, (1000 - age, 1000 - age))
    compilation_cache.prune(tmp_path)
    assert len(compilation_cache.cache_files(tmp_path)) == 5
    for age, written in ((0, 1000), (1, None)):
        (tmp_path / f"{age}-cache").write_bytes(b"\x78half")
        if written:
            os.utime(tmp_path / f"{age}-cache", (written, written))
    monkeypatch.setattr(compilation_cache, "MOST_BYTES", 2100)
    compilation_cache.prune(tmp_path)
    assert [each.name for each in compilation_cache.cache_files(tmp_path)] == [
        "3-cache",
        "2-cache",
        "0-cache",
    ]


@pytest.mark.parametrize("other", ["jaxlib", "cpu"])
def test_another_jaxlib_or_cpu_has_programs_of_its_own(other, monkeypatch):
    before = compilation_cache.default_folder()
    if other == "jaxlib":
        monkeypatch.setattr("importlib.metadata.version", lambda _: "99.0")
    else:
        monkeypatch.setattr(Path, "read_text", lambda *_, **__: "flags\t\t: sse avx512\n")
    assert compilation_cache.default_folder() != before


def test_commands_set_it_before_they_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(compilation_cache.FOLDER)
    monkeypatch.setitem(main.__globals__["COMMANDS"], "doctor", lambda: print(os.environ["X"]))
    monkeypatch.setenv("X", "ran")
    assert main(["doctor"]) == 0 and capsys.readouterr().out == "ran\n"
    assert os.environ.pop(compilation_cache.FOLDER) == str(compilation_cache.default_folder())


def test_the_doctor_says_where_they_are_and_when_they_are_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv(compilation_cache.FOLDER, str(tmp_path / "new"))
    assert machine.compiled_programs().finding.startswith("none yet in")
    (tmp_path / "a-cache").write_bytes(bytes(10**6))
    monkeypatch.setenv(compilation_cache.FOLDER, str(tmp_path))
    assert machine.compiled_programs().finding == f"1 in {tmp_path} (1 MB)"
    monkeypatch.delenv(compilation_cache.FOLDER)
    found = machine.compiled_programs()
    assert found.status == "warning" and found.cure.startswith(
        f"export {compilation_cache.FOLDER}="
    )
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "0")
    assert machine.compiled_programs().status == "ok"
