"""Atomic creation of folders."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt3jax.errors import ConfigError


def is_free(path: str | os.PathLike[str]) -> bool:
    """Whether a path does not exist or is an empty folder."""
    return not os.path.lexists(path) or (os.path.isdir(path) and not os.listdir(path))


@contextmanager
def atomic_folder(out: Path, is_only: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `out`, which is renamed to `out` on success.

    The folder is locked while it is in use and deleted after an exception. Folders left by dead
    processes of this host are deleted first.

    Args:
      out: the final path.
      is_only: refuse to start while another process of this host writes the same `out`. By
        default the process that finishes first renames its folder and the other gets an OSError.

    Raises:
      ConfigError: the folder cannot be written, or another process is writing it.
    """
    try:
        folder, lock = _claim(out, is_only)
    except OSError as error:
        raise ConfigError(
            f"--out {out} cannot be written: {error.strerror}. Choose another folder"
        ) from error
    try:
        yield folder
        if is_only and not is_free(out):
            raise ConfigError(
                f"--out {out} was written by another process in the meantime: nothing is "
                "overwritten. Run again to compare the settings, or choose another --out"
            )
        os.rename(folder, out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def is_alive(pid: int) -> bool:
    """Whether a process with this id exists on this host."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _claim(out: Path, is_only: bool) -> tuple[Path, int]:
    """A new temporary folder, and the descriptor that locks it until closed."""
    prefix = f"{out.name}.partial-{socket.gethostname()}-"
    out.parent.mkdir(parents=True, exist_ok=True)
    parent = os.open(out.parent, os.O_RDONLY)
    try:
        # Lock the parent so that of two processes that start at once the second sees the first.
        _lock(parent, fcntl.LOCK_EX)
        for path in out.parent.iterdir():
            pid = path.name.removeprefix(prefix)
            if not (path.name.startswith(prefix) and pid.isdigit()):
                continue
            if not _is_written(path, int(pid)):
                shutil.rmtree(path, ignore_errors=True)
            elif is_only:
                raise ConfigError(
                    f"--out {out} is being written by process {pid}: only one process can write "
                    "it. Wait for it, or choose another --out"
                )
        folder = out.parent / f"{prefix}{os.getpid()}"
        folder.mkdir()
        lock = os.open(folder, os.O_RDONLY)
        _lock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(parent)
    return folder, lock


def _is_written(folder: Path, pid: int) -> bool:
    """Whether a process is still writing a folder: its lock is released however it ends."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return False  # It has been renamed to its final path.
    try:
        if _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return False
        # Containers reuse process ids after a restart, so our own id may be an old one.
        return pid != os.getpid() and is_alive(pid)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    """Lock an open folder; False if the file system does not support locks.

    Raises:
      BlockingIOError: another process holds the lock.
    """
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True
