"""Keep the compiled train step of a run in the run, so that a resume uses the same kernels.

On GPUs, XLA times kernels and chooses the fastest, so that another compilation of the same program
may choose others, which round differently. JAX's compilation cache stores programs with these
choices under a key that covers the program, its options, the kind of device, and the versions of
JAX and XLA. This file copies the train step from that cache to the run, and back on another host.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import jax

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
        cache = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
        kept = {file.name for file in self._folder.glob(f"{name}-*-cache")}
        for file in kept if cache else ():
            _copy(self._folder / file, Path(cache) / file)
        with _logged_keys(name) as keys:
            yield
        if keys:
            _keys[function] = keys[-1]
        file = f"{_keys.get(function)}-cache"
        self.was_kept = file in kept
        if cache and self._is_writer and (Path(cache) / file).exists():
            _copy(Path(cache) / file, self._folder / file)


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


def _copy(source: Path, target: Path) -> None:
    """Copy a file atomically, unless the target exists: the name determines the content.

    A copy that fails costs a compilation, not the run.
    """
    with suppress(OSError):
        if not target.exists():
            target.parent.mkdir(mode=0o700, exist_ok=True)
            partial = target.with_name(f"{target.name}.{os.getpid()}")
            shutil.copyfile(source, partial)
            partial.rename(target)
