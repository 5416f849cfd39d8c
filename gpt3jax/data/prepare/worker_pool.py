"""Processes that work for one job and do not outlive it."""

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
    """A parallel `map`: results in the order of the jobs. A count of 1 is this process alone.

    The function and jobs must pickle.

    Raises:
      RuntimeError: a process was killed.
    """
    if count == 1:
        yield map
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=spawn, initializer=_die_with_parent)

    def run(function: Callable, jobs: Iterable) -> Iterator:
        with _no_main_module():  # submitting is what starts processes
            return pool.map(function, jobs)

    try:
        yield run
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a data process was killed: most likely memory ran out. Use fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Hide the script that runs: spawn would import it again in each process.

    A script without `if __name__ == "__main__"` would then start itself anew.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _die_with_parent() -> None:
    """A killed parent cannot stop its processes; without this they would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ctrl-C ends them without a traceback each
    parent = multiprocessing.parent_process()

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
