"""A pool of worker processes that do not outlive their parent."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager


@contextmanager
def processes(count: int) -> Iterator[Callable]:
    """A parallel, ordered `map`; with a count of 1, the built-in one.

    The function and the jobs must be picklable.

    Raises:
      RuntimeError: a process was killed.
    """
    if count == 1:
        yield map
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=spawn, initializer=_die_with_parent)

    def run(function: Callable, jobs: Iterable) -> Iterator:
        with _no_main_module():  # Processes start when jobs are submitted.
            return pool.map(function, jobs)

    try:
        yield run
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a data process was killed: most likely out of memory. Use fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Hide the main script, which spawn would import in each process.

    A script without `if __name__ == "__main__"` would run again there.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _die_with_parent() -> None:
    """Exit when the parent dies; a killed parent cannot stop its workers."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # No traceback from each worker on Ctrl-C.
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
