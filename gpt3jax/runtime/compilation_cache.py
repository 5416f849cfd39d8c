"""Set up and prune JAX's persistent compilation cache, one per user, jaxlib and CPU model.

JAX's own variables take precedence: JAX_COMPILATION_CACHE_DIR selects another folder,
JAX_ENABLE_COMPILATION_CACHE=0 disables the cache.
"""

from __future__ import annotations

import contextlib
import os
import platform
import zlib
from pathlib import Path

from gpt3jax.serde import short_hash

FOLDER = "JAX_COMPILATION_CACHE_DIR"
MOST_BYTES = 2 * 2**30
"""Maximum size of the cache; the oldest programs beyond it are deleted when a command starts."""
CPU_FIELDS = (
    "vendor_id",
    "cpu family",
    "model",
    "flags",
    "CPU implementer",
    "CPU part",
    "Features",
)
"""Fields of /proc/cpuinfo that compiled code depends on. Hosts may share a home folder."""


def enable_compilation_cache() -> None:
    """Set the cache folder; call before jax is imported. Does nothing if it is not writable."""
    if FOLDER in os.environ:
        return
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: the user has no home folder.
        folder = default_folder()
        # Cached programs are code, so only the user may write them.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            return
        os.environ[FOLDER] = str(folder)
        # Small programs are so many that their compile times add up.
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        # XLA's own caches would make the folder's path part of every program's key, and a run's
        # program could not be used by another host (kept_programs.py).
        os.environ.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")
        prune(folder)


def default_folder() -> Path:
    """The cache folder of this user, jaxlib and CPU.

    Raises:
      RuntimeError: the user has no home folder.
    """
    # `--help` does without this import, which takes a sixth of its time.
    from importlib.metadata import version

    return cache_home() / f"jaxlib-{version('jaxlib')}-{_cpu()}"


def cache_home() -> Path:
    """The folder of this user for what gpt3jax keeps between runs.

    Raises:
      RuntimeError: the user has no home folder.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpt3jax"


def cache_files(folder: Path) -> list[os.DirEntry[str]]:
    """The compiled programs in a folder, oldest first."""
    files = [each for each in os.scandir(folder) if each.name.endswith("-cache")]
    return sorted(files, key=lambda each: each.stat().st_mtime)


def prune(folder: Path) -> None:
    """Delete incomplete programs and the oldest programs beyond `MOST_BYTES`.

    A process that is killed may leave an incomplete program, for which JAX would warn on every
    use without replacing it. Deleting a program while another process writes it is safe: that
    process keeps its compiled program and only the cache entry is lost.
    """
    checked = folder / "checked"
    before = checked.stat().st_mtime if checked.exists() else 0
    checked.touch()
    room = MOST_BYTES
    for each in reversed(cache_files(folder)):
        room -= each.stat().st_size
        if room < 0 or (each.stat().st_mtime >= before and not _is_complete(Path(each))):
            Path(each).unlink(missing_ok=True)


def _is_complete(file: Path) -> bool:
    """Whether a zlib-compressed program is intact; other compression formats are not checked."""
    data = file.read_bytes()
    if data[:1] != b"\x78":
        return bool(data)
    try:
        zlib.decompress(data)
    except zlib.error:
        return False
    return True


def _cpu() -> str:
    """A hash of the CPU's model and instruction set."""
    lines = []
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        lines = [line for line in text.splitlines() if line.split("\t")[0].strip() in CPU_FIELDS]
    return short_hash([platform.machine(), *lines])
