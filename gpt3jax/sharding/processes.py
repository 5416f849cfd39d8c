"""Several processes as one: agreeing, sharing arrays, and ending together.

Each host runs the same program; distributed.py joins them. In a process alone,
each function does what is left of it, and nothing is sent.
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
    """Which process this is, from 0."""
    return jax.process_index()


def is_first() -> bool:
    """Whether this process prints, logs and writes what is shared."""
    return jax.process_index() == 0


def name(process: int | None = None, host: str | None = None) -> str:
    """`host 3 (tpu-worker-3)`: how messages name a process."""
    process = jax.process_index() if process is None else process
    return f"host {process} ({host or socket.gethostname()})"


def exchange(value: Any) -> list[Any]:
    """A JSON value of each process, in order; every process must call it."""
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
    """What `facts` finds on every host, which must be the same.

    Raises:
      ConfigError: on all hosts, if it raised one on any, or if one host's facts
        are not the first's; the host is named.
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
        found = _flat(theirs["facts"])
        for key in {**expected, **found}:
            if expected.get(key) != found.get(key):
                raise ConfigError(
                    f"{name(process, theirs['host'])} has {key} {found.get(key)}, "
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
    """Do the work on the first process alone; all go on together, with the JSON value it gives.

    Raises:
      ConfigError: on all hosts, if the work raised one.
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
    """Whether the flag is true on any host, as something that is true or false.

    Of several hosts, an array that is not waited for: ask before a step is sent
    off, and the answer is there when the step before it is done. Alone, the flag
    itself, which may become true later.
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
    """An array that every process holds, laid out over the mesh."""
    return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])


def end_together(error: Exception) -> None:
    """Before an error ends this process: see that it ends the others, too, and is told once.

    A normal exit would wait for the others at JAX's shutdown barrier, while they
    wait for us in a collective. In a process alone, nothing happens.
    """
    if jax.process_count() == 1 or (isinstance(error, ConfigError) and is_first()):
        return
    if isinstance(error, ConfigError):  # All hosts agree on it; the first says it.
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
