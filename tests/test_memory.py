"""Freed memory is kept for training on CPUs, and never beside an accelerator."""

import os
from types import SimpleNamespace

import pytest

from gpt3jax.runtime import memory


@pytest.fixture
def options(monkeypatch):
    """What glibc is told."""
    told = []
    libc = SimpleNamespace(mallopt=lambda option, value: told.append((option, value)))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: libc)
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    return told


@pytest.mark.parametrize(
    ("asked", "plugin", "device", "is_kept"),
    [
        (None, None, False, True),
        (None, "jax_plugins", False, True),
        (None, None, True, True),
        (None, "jax_plugins", True, False),
        (None, "libtpu", True, False),
        ("", "libtpu", True, False),
        ("cpu", "jax_plugins", True, True),
        ("cuda", None, False, False),
        ("cuda,cpu", "jax_plugins", True, False),
        ("tpu", "libtpu", False, False),
    ],
)
def test_freed_memory_is_kept_only_where_jax_computes_on_cpus(
    options, monkeypatch, asked, plugin, device, is_kept
):
    """A plugin alone is no accelerator, nor a device without one; what is asked for goes first."""
    if asked is not None:
        monkeypatch.setenv("JAX_PLATFORMS", asked)
    monkeypatch.setattr(memory, "find_spec", lambda name: name if name == plugin else None)
    monkeypatch.setattr(memory, "DEVICES", ("nosuch*", "nul[l]" if device else "nosuch/[0-9]*"))
    memory.retain_freed_memory()
    # M_ARENA_MAX, M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h.
    assert options == ([(-8, 1), (-4, 0), (-1, -1)] if is_kept else [])


def test_training_may_allocate_what_plan_counts_on_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv(memory.FRACTION, raising=False)
    memory.allow_device_memory()
    assert os.environ[memory.FRACTION] == "0.92"
    monkeypatch.setenv(memory.FRACTION, "0.5")
    memory.allow_device_memory()
    assert os.environ[memory.FRACTION] == "0.5"
