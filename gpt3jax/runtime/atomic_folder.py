"""Folders that appear whole or not at all."""

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
    """Whether a folder can be made there: nothing is, or an empty one."""
    return not os.path.lexists(path) or (os.path.isdir(path) and not os.listdir(path))


@contextmanager
def atomic_folder(out: Path, is_only: bool = False) -> Iterator[Path]:
    """A folder beside `out` to write in, which gets that name at the end.

    It is locked as long as somebody writes in it. After an exception nothing is left. What dead
    processes of this host left there goes.

    Args:
      out: the name at the end.
      is_only: refuse to write where another process of this host does; otherwise the first to
        end gives the folder its name, and the second gets an OSError.

    Raises:
      ConfigError: nothing can be written there, or another process does.
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
                f"--out {out} was made by another process meanwhile: nothing is overwritten. "
                "Start again to compare the settings, or choose another --out"
            )
        os.rename(folder, out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def is_alive(pid: int) -> bool:
    """Whether this host has a process of this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _claim(out: Path, is_only: bool) -> tuple[Path, int]:
    """A new folder to write in, and the descriptor that locks it until it is closed."""
    prefix = f"{out.name}.partial-{socket.gethostname()}-"
    out.parent.mkdir(parents=True, exist_ok=True)
    parent = os.open(out.parent, os.O_RDONLY)
    try:
        # One process at a time: of two that begin at once, the second sees the first.
        _lock(parent, fcntl.LOCK_EX)
        for path in out.parent.iterdir():
            pid = path.name.removeprefix(prefix)
            if not (path.name.startswith(prefix) and pid.isdigit()):
                continue
            if not _is_written(path, int(pid)):
                shutil.rmtree(path, ignore_errors=True)
            elif is_only:
                raise ConfigError(
                    f"--out {out} is being made by process {pid}: two cannot write it at once. "
                    "Wait for it, or choose another --out"
                )
        folder = out.parent / f"{prefix}{os.getpid()}"
        folder.mkdir()
        lock = os.open(folder, os.O_RDONLY)
        _lock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(parent)
    return folder, lock


def _is_written(folder: Path, pid: int) -> bool:
    """Whether a process still writes in a folder: its lock goes with it, however it ends."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return False  # It has got its name at the end.
    try:
        if _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return False
        # In a container, ids return after a restart: our own was another's.
        return pid != os.getpid() and is_alive(pid)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    """Lock an open folder; False where the file system has no locks.

    Raises:
      BlockingIOError: another has locked it.
    """
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True
