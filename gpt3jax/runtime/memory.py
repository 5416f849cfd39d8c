"""What memory there is; and keeping what is freed in the process, for training.

glibc gives large freed blocks back to the kernel, so every training step of
XLA's CPU backend faults its whole working set in anew: 280,000 page faults and
14 % of a step at the 12M shape (2 cores, jax 0.10.2, 2026-11-23). Generation,
which allocates little, is 10 % slower with this and does without.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

DEVICES = ("nvidia[0-9]*", "kfd", "dxg", "accel*", "vfio/[0-9]*", "dri/renderD*")
"""Of GPUs and TPUs, below /dev."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def available_bytes() -> int:
    """Bytes of memory that this machine has for new work; all it has, where it does not say."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        line = re.search(r"MemAvailable: +(\d+)", meminfo.read_text())
        return int(line[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def may_have_accelerator() -> bool:
    """Whether jax may compute on something other than a CPU, as far as can be told without it."""
    if asked := os.environ.get("JAX_PLATFORMS"):
        return asked.strip().lower() != "cpu"
    has_plugin = any(map(find_spec, ("jax_plugins", "libtpu")))
    return has_plugin and any(next(Path("/dev").glob(name), None) for name in DEVICES)


def retain_freed_memory() -> None:
    """Tell glibc to reuse freed blocks; call before jax is imported. Elsewhere, do nothing.

    Beside an accelerator the host computes little, and compiles with many threads, which
    would wait for each other in the only arena: three times as long (16 cores, H100).
    """
    if not sys.platform.startswith("linux") or may_have_accelerator():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
