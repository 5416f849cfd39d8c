"""Keep the compiled train step of a run in the run, so that a resume uses the same kernels.

On GPUs, XLA times kernels and chooses the fastest, so that another compilation of the same program
may choose others, which round differently. JAX's compilation cache stores programs with these
choices under a key that covers the program, its options, the kind of device, and the versions of
JAX and XLA. This file copies the train step from that cache to the run, and back on another host.

Programs are code, and a run may come from somebody else. They are therefore signed with a key of
this user, in the home folder, and a program with another signature is not used.
"""

from __future__ import annotations

import hmac
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import jax

from gpt3jax.runtime.compilation_cache import MOST_BYTES, cache_home

SIGNATURE_BYTES = 32
LOGGER = "jax._src.compiler"
"""JAX names the cache key of each program it compiles or loads only in this log, level DEBUG."""

_keys: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
"""The cache key of each function that was compiled in this process."""


class KeptPrograms:
    """The compiled programs in a folder of a run."""

    def __init__(self, folder: Path, *, is_writer: bool):
        """Nothing is read or written yet.

        Args:
          folder: created if needed.
          is_writer: whether this process adds programs to the folder.
        """
        self._folder, self._is_writer = folder, is_writer
        self.was_kept = False
        """Whether the program of the last `compiling` was already in the folder."""

    @contextmanager
    def compiling(self, function: Callable[..., Any], name: str) -> Iterator[None]:
        """The first call of a jitted function, inside, uses its program in the folder, if any.

        Args:
          function: the jitted function.
          name: the name of its program, such as `jit_train_step`.
        """
        folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
        cache = Path(folder) if folder else None
        kept = self._offer(cache, name) if cache else set()
        with _logged_keys(name) as keys:
            yield
        if keys:
            _keys[function] = keys[-1]
        file = f"{_keys.get(function)}-cache"
        self.was_kept = file in kept
        if cache and self._is_writer and not self.was_kept:
            self._keep(cache / file)

    def _offer(self, cache: Path, name: str) -> set[str]:
        """Copy this user's programs from the run to the cache; returns their file names."""
        offered = set()
        with suppress(OSError, RuntimeError):  # A failure costs a compilation, not the run.
            for path in self._folder.glob(f"{name}-*-cache"):
                program = _verified(path)
                if program is not None:
                    if not (cache / path.name).exists():
                        _write(cache / path.name, program)
                    offered.add(path.name)
        return offered

    def _keep(self, file: Path) -> None:
        """Copy a program from the cache to the run."""
        with suppress(OSError, RuntimeError):
            program = file.read_bytes()
            _write(self._folder / file.name, _signature(file.name, program) + program)


@contextmanager
def _logged_keys(name: str) -> Iterator[list[str]]:
    """Cache keys of the programs of this name that are compiled or loaded inside."""
    logger, keys = logging.getLogger(LOGGER), []
    level, is_verbose = logger.level, logger.isEnabledFor(logging.DEBUG)

    def collect(record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple) and len(record.args) == 2 and record.args[0] == name:
            keys.append(str(record.args[1]))
        return is_verbose or record.levelno > logging.DEBUG

    logger.addFilter(collect)
    logger.setLevel(logging.DEBUG)
    try:
        yield keys
    finally:
        logger.setLevel(level)
        logger.removeFilter(collect)


def _verified(path: Path) -> bytes | None:
    """The program in a file of a run, if this user has signed it."""
    if not path.is_file() or path.is_symlink() or path.stat().st_size > MOST_BYTES:
        return None
    signed = path.read_bytes()
    signature, program = signed[:SIGNATURE_BYTES], signed[SIGNATURE_BYTES:]
    return program if hmac.compare_digest(signature, _signature(path.name, program)) else None


def _signature(name: str, program: bytes) -> bytes:
    return hmac.digest(_user_key(), name.encode() + b"\0" + program, "sha256")


def _user_key() -> bytes:
    """The secret key of this user, which is created if needed.

    Raises:
      OSError: it cannot be read or created.
      RuntimeError: the user has no home folder.
    """
    file = cache_home() / "key"
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(secrets.token_bytes(SIGNATURE_BYTES))
    key = file.read_bytes()
    if len(key) != SIGNATURE_BYTES:
        raise OSError(f"{file} is not a key of {SIGNATURE_BYTES} bytes")
    return key


def _write(path: Path, data: bytes) -> None:
    """Write a file atomically; it is readable by its owner only."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_bytes(data)
    partial.rename(path)
