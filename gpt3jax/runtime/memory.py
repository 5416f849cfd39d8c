"""Available memory, and malloc settings for training on CPUs.

By default glibc returns large freed blocks to the kernel, so that each training step on XLA's CPU
backend page-faults its working set in again: 280,000 page faults and 14 % of a step at the 12M
shape (2 cores, jax 0.10.2, 2026-11-23). Decoding, which allocates little, is 10 % slower with
`retain_freed_memory` and does not use it.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

DEVICES = ("nvidia[0-9]*", "kfd", "dxg", "accel*", "vfio/[0-9]*", "dri/renderD*")
"""Device files of GPUs and TPUs in /dev."""

USABLE = 0.92
"""Share of an accelerator's memory that `plan` counts on and that training may allocate."""
FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def available_bytes() -> int:
    """Available memory in bytes; total memory on systems without /proc/meminfo."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists() and (line := re.search(r"MemAvailable: +(\d+)", meminfo.read_text())):
        return int(line[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def may_have_accelerator() -> bool:
    """Whether jax may use an accelerator, estimated without importing jax."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms.strip().lower() != "cpu"
    has_plugin = any(map(find_spec, ("jax_plugins", "libtpu")))
    return has_plugin and any(next(Path("/dev").glob(name), None) for name in DEVICES)


def allow_device_memory() -> None:
    """Let jax allocate `USABLE` of a GPU's memory; call before jax is imported.

    jax's default is 75 %. The user's `FRACTION` takes precedence.
    """
    os.environ.setdefault(FRACTION, str(USABLE))


def retain_freed_memory() -> None:
    """Make glibc reuse freed blocks (Linux without accelerator); call before jax is imported.

    With an accelerator the host mostly compiles, with many threads that would contend for the
    single arena: compilation took three times as long (16 cores, H100).
    """
    if not sys.platform.startswith("linux") or may_have_accelerator():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
