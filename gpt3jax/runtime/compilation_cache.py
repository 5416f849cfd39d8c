"""Compiled programs are kept between commands: each is compiled once per user, jaxlib and CPU.

JAX keeps them (its persistent compilation cache); here is decided where, and for
how long. JAX's own variables go first: JAX_COMPILATION_CACHE_DIR names another
folder, JAX_ENABLE_COMPILATION_CACHE=0 keeps nothing.
"""

from __future__ import annotations

import contextlib
import os
import platform
import zlib
from importlib.metadata import version
from pathlib import Path

from gpt3jax.serde import short_hash

FOLDER = "JAX_COMPILATION_CACHE_DIR"
MOST_BYTES = 2 * 2**30
"""Beyond it the oldest programs go, at the start of a command."""
OF_CPU = ("vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features")
"""Lines of /proc/cpuinfo on which compiled code depends: home folders are shared by hosts."""


def enable_compilation_cache() -> None:
    """Say where compiled programs are kept; before jax is imported. Without room, nowhere."""
    if FOLDER in os.environ:
        return
    with contextlib.suppress(OSError, RuntimeError):  # Also where nobody is at home.
        folder = default_folder()
        # Programs are code: who may write here may run it.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            return
        os.environ[FOLDER] = str(folder)
        # Small programs are many, and add up.
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        prune(folder)


def default_folder() -> Path:
    """Where programs of this user, jaxlib and CPU are kept.

    Raises:
      RuntimeError: the user has no home.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "gpt3jax" / f"jaxlib-{version('jaxlib')}-{_cpu()}"


def cache_files(folder: Path) -> list[os.DirEntry[str]]:
    """The files of compiled programs in a folder, the oldest first."""
    files = [each for each in os.scandir(folder) if each.name.endswith("-cache")]
    return sorted(files, key=lambda each: each.stat().st_mtime)


def prune(folder: Path) -> None:
    """Remove what a killed process left half written, and the oldest beyond `MOST_BYTES`.

    JAX would complain of a half program each time, and never replace it. What is
    being written meanwhile is lost to others, not to who writes it.
    """
    checked = folder / "checked"
    before = checked.stat().st_mtime if checked.exists() else 0
    checked.touch()
    room = MOST_BYTES
    for each in reversed(cache_files(folder)):
        room -= each.stat().st_size
        if room < 0 or (each.stat().st_mtime >= before and not _is_whole(Path(each))):
            Path(each).unlink(missing_ok=True)


def _is_whole(file: Path) -> bool:
    """Whether a program was written to its end; one packed otherwise than by zlib is believed."""
    data = file.read_bytes()
    if data[:1] != b"\x78":
        return bool(data)
    try:
        zlib.decompress(data)
    except zlib.error:
        return False
    return True


def _cpu() -> str:
    """Its name and what code it runs, as a hash."""
    lines = []
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        lines = [line for line in text.splitlines() if line.split("\t")[0].strip() in OF_CPU]
    return short_hash([platform.machine(), *lines])
