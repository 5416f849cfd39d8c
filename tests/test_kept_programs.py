"""A run keeps its compiled train step: another host uses that program, and compiles none."""

import logging

import jax
import jax.numpy as jnp
import pytest
from building import changed
from jax.experimental.compilation_cache import compilation_cache

from gpt3jax.checkpoint.checkpointer import Checkpointer
from gpt3jax.run_dir import Run
from gpt3jax.runtime.kept_programs import LOGGER, KeptPrograms
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.train import step, stepper
from gpt3jax.train.monitor.replay import replay
from gpt3jax.train.train import train

LEAST_S = jax.config.jax_persistent_cache_min_compile_time_secs
XLA_CACHES = jax.config.jax_persistent_cache_enable_xla_caches


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Makes this process one with another, empty compilation cache; undone at the end."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    before = jax.config.jax_compilation_cache_dir
    # As `gpt3jax` sets it: otherwise the folder is part of each key.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

    def use(folder):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        compilation_cache.reset_cache()
        jax.clear_caches()

    yield lambda name: use(tmp_path / name)
    use(before)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_S)
    jax.config.update("jax_persistent_cache_enable_xla_caches", XLA_CACHES)


def first_call(programs, factor=3.0):
    """Compile or load a function, newly made, as in another process."""

    def double(x):
        return x * factor

    function = jax.jit(double)
    with programs.compiling(function, "jit_double"):
        assert function(jnp.float32(2.0)) == 2 * factor
    return function


def compilations(caplog, work):
    """The messages of JAX about programs that it had to compile."""
    with caplog.at_level(logging.DEBUG, LOGGER):
        caplog.clear()
        work()
    return [each.message for each in caplog.records if "MISS for 'jit_double'" in each.message]


def test_another_host_uses_the_program_of_the_run(host, tmp_path, caplog):
    kept = KeptPrograms(tmp_path / "autotune", is_writer=True)
    host("first")
    first_call(kept)
    (file,) = (tmp_path / "autotune").iterdir()
    assert file.name.startswith("jit_double-") and not kept.was_kept
    host("second")
    found = KeptPrograms(tmp_path / "autotune", is_writer=False)
    assert compilations(caplog, lambda: first_call(found)) == []
    assert found.was_kept
    assert file.read_bytes()[32:] == (tmp_path / "second" / file.name).read_bytes()
    host("third")
    assert len(compilations(caplog, lambda: first_call(found, factor=5.0))) == 1
    assert not found.was_kept and len(list((tmp_path / "autotune").iterdir())) == 1


def test_a_program_that_this_process_has_already_is_kept_in_its_next_run(host, tmp_path):
    host("first")
    function = first_call(KeptPrograms(tmp_path / "a", is_writer=True))
    again = KeptPrograms(tmp_path / "b", is_writer=True)
    with again.compiling(function, "jit_double"):
        function(jnp.float32(1.0))
    assert [file.name for file in (tmp_path / "a").iterdir()] == [
        file.name for file in (tmp_path / "b").iterdir()
    ]


@pytest.mark.parametrize(
    "who", ["another user", "a flipped bit", "another name", "a link", "no key"]
)
def test_a_program_that_this_user_did_not_sign_is_not_loaded(host, tmp_path, who, caplog):
    """A downloaded run may have one, and a program is code."""
    host("first")
    first_call(KeptPrograms(tmp_path / "autotune", is_writer=True))
    (file,) = (tmp_path / "autotune").iterdir()
    key, signed = tmp_path / "home/gpt3jax/key", file.read_bytes()
    assert key.stat().st_mode & 0o77 == 0 and len(key.read_bytes()) == 32
    if who == "another user":
        key.unlink()
    elif who == "no key":
        key.write_bytes(b"")
    elif who == "a flipped bit":
        file.write_bytes(signed[:-1] + bytes([signed[-1] ^ 1]))
    else:
        file.rename(tmp_path / "elsewhere")
        if who == "a link":
            file.symlink_to(tmp_path / "elsewhere")
        else:
            (tmp_path / "elsewhere").rename(file.with_name("jit_double-00-cache"))
    host("second")
    found = KeptPrograms(tmp_path / "autotune", is_writer=True)
    assert len(compilations(caplog, lambda: first_call(found))) == 1
    assert not found.was_kept
    kept = file.read_bytes() if file.exists() else b""
    assert (kept == signed) == (who == "no key"), "it is replaced by this user's"


def test_without_a_cache_nothing_is_kept_and_no_log_is_left_on(host, tmp_path, capfd):
    host("first")
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    kept = KeptPrograms(tmp_path / "autotune", is_writer=True)
    first_call(kept)
    assert not kept.was_kept and not (tmp_path / "autotune").exists()
    assert not logging.getLogger(LOGGER).filters and capfd.readouterr().err == ""


@pytest.mark.usefixtures("one_device")
def test_a_resume_and_a_replay_on_another_host_say_when_kernels_are_new(
    host, short, tmp_path, monkeypatch, capsys
):
    """As on a GPU, whose platform name alone is pretended here."""
    monkeypatch.setattr(stepper, "PLATFORMS", ("cpu",))
    run, warning = Run(tmp_path / "run"), "XLA chose kernels anew"

    def on(name, steps):
        host(name)
        step._jitted.cache_clear()
        train(changed(short, train={"steps": steps}), run.path)
        said = capsys.readouterr()
        return said.out + said.err

    assert warning not in on("first", 2)
    (program,) = run.autotune.iterdir()
    assert warning not in on("second", 4) and [program] == list(run.autotune.iterdir())

    def replayed():
        step._jitted.cache_clear()
        checkpoints = Checkpointer(run.checkpoints)
        return replay(run, checkpoints, 2, 2, 4, lambda e: make_mesh(e.mesh, jax.devices()))

    assert replayed().notes == []
    program.unlink()
    host("third")
    found = replayed()
    assert warning in found.notes[0] and found.compared and not found.differences
    assert not list(run.autotune.iterdir()), "a replay only reads"
    assert warning in on("fourth", 6) and list(run.autotune.iterdir())
