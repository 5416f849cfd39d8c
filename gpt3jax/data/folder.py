"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt3jax.config import ConfigError


def is_free(path: str | os.PathLike[str]) -> bool:
    """Whether a folder can be made there: nothing is, or an empty one."""
    return not os.path.lexists(path) or (os.path.isdir(path) and not os.listdir(path))


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write in, which gets that name at the end.

    After an exception nothing is left. What dead processes of this host left there goes.

    Raises:
      ConfigError: nothing can be written there.
    """
    folder = _partial(out)
    try:
        yield folder
        os.rename(folder, out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def is_alive(pid: int) -> bool:
    """Whether this host has a process of this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _partial(out: Path) -> Path:
    prefix = f"{out.name}.partial-{socket.gethostname()}-"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for path in out.parent.iterdir():
            pid = path.name.removeprefix(prefix)
            if path.name.startswith(prefix) and pid.isdigit() and _is_left(int(pid)):
                shutil.rmtree(path, ignore_errors=True)
        folder = out.parent / f"{prefix}{os.getpid()}"
        folder.mkdir()
    except OSError as error:
        raise ConfigError(
            f"--out {out} cannot be written: {error.strerror}. Choose another folder"
        ) from error
    return folder


def _is_left(pid: int) -> bool:
    """In a container, ids return after a restart: our own was another's."""
    return pid == os.getpid() or not is_alive(pid)
