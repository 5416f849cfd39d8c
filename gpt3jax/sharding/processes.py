"""Coordination of the processes of a job: agreement, shared arrays and errors.

Each host runs the same program; distributed.py joins them. With a single process the functions
communicate nothing.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt3jax.errors import ConfigError, RunError
from gpt3jax.sharding.distributed import HEARTBEAT_S


def index() -> int:
    """The index of this process, from 0."""
    return jax.process_index()


def is_first() -> bool:
    """Whether this is process 0, which prints, logs and writes shared files."""
    return jax.process_index() == 0


def name(process: int | None = None, host: str | None = None) -> str:
    """The name of a process in messages, such as `host 3 (tpu-worker-3)`."""
    process = jax.process_index() if process is None else process
    return f"host {process} ({host or socket.gethostname()})"


def exchange(value: Any) -> list[Any]:
    """The JSON values of all processes, in order; every process must call this."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    mine = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = process_allgather(np.int32(len(mine)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(mine)] = mine
    rows = process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes.ravel(), strict=True)]


def agree(facts: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of `facts`, which must be equal on all hosts.

    Raises:
      ConfigError: on all hosts, if `facts` raised it on any host, or if a host's facts differ from
        the first's; the message names the host.
    """
    mine = {"host": socket.gethostname(), "facts": {}, "error": None}
    try:
        mine["facts"] = facts()
    except (ConfigError, RunError) as error:
        if jax.process_count() == 1:
            raise
        mine["error"] = str(error)
    first, *others = exchange(mine)
    for process, theirs in enumerate([first, *others]):
        if theirs["error"]:
            raise ConfigError(f"{name(process, theirs['host'])}: {theirs['error']}")
    expected = _flat(first["facts"])
    for process, theirs in enumerate(others, 1):
        actual = _flat(theirs["facts"])
        for key in {**expected, **actual}:
            if expected.get(key) != actual.get(key):
                raise ConfigError(
                    f"{name(process, theirs['host'])} has {key} {actual.get(key)}, "
                    f"{name(0, first['host'])} has {expected.get(key)}: all hosts must run the "
                    "same. Give them the same code, data and command"
                )
    return first["facts"]


def _flat(facts: Any, key: str = "") -> dict[str, str]:
    """The leaves of nested JSON by dotted name, each as JSON."""
    if not isinstance(facts, dict):
        return {key: json.dumps(facts)}
    return {
        name: leaf
        for inner, value in facts.items()
        for name, leaf in _flat(value, f"{key}.{inner}".lstrip(".")).items()
    }


def on_first(work: Callable[[], Any]) -> Any:
    """Call `work` on process 0 only; all processes wait for and return its JSON result.

    Raises:
      ConfigError: on all hosts, if `work` raised it.
    """
    value = None

    def facts() -> dict[str, Any]:
        nonlocal value
        if is_first():
            value = work()
        return {}

    agree(facts)
    return exchange(value)[0]


def any_host(flag: Any, mesh: Mesh) -> Any:
    """Whether the flag is true on any host, as an object to convert to bool later.

    With several hosts it is an array that is computed asynchronously: call this before a step is
    dispatched, and the result is ready when the previous step is done. With a single process it is
    the flag itself, which may become true later.
    """
    if jax.process_count() == 1:
        return flag
    everywhere = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    flags = jax.make_array_from_callback((mesh.size,), everywhere, lambda _: np.array([bool(flag)]))
    return _any(flags)


@jax.jit
def _any(flags: jax.Array) -> jax.Array:
    return flags.any()


def shard_across_hosts(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Shard an array that every process has over the mesh."""
    return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])


def end_together(error: Exception) -> None:
    """On an error, end all processes of the job, and print the error once.

    A normal exit would wait for the others at JAX's shutdown barrier while they wait for this
    process in a collective. With a single process this does nothing.
    """
    if jax.process_count() == 1 or (isinstance(error, ConfigError) and is_first()):
        return
    if isinstance(error, ConfigError):  # Raised on all hosts; process 0 prints it.
        raise SystemExit(2) from error
    is_victim = isinstance(error, jax.errors.JaxRuntimeError)
    text = " ".join(str(error).split())[:160]
    hint = "; if another host died, JAX names it next (host 0 if it says: socket closed)"
    print(
        f"error: {name()}: {type(error).__name__}: {text}{hint if is_victim else ''}",
        file=sys.stderr,
        flush=True,
    )
    sys.stdout.flush()
    if is_victim:
        time.sleep(HEARTBEAT_S + 5)
    os._exit(1)
