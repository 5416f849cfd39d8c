"""Joining the other processes of a job, by JAX's multi-controller runtime.

Which process we are comes from the cluster (TPU, Slurm, Kubernetes, Open MPI),
which JAX detects by itself, or from three flags. Importing this file does not
import jax.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

from gpt3jax.errors import ConfigError

MANAGED = (
    "SLURM_STEP_NODELIST",
    "OMPI_COMM_WORLD_SIZE",
    "KUBERNETES_SERVICE_HOST",
    "TPU_WORKER_HOSTNAMES",
    "MEGASCALE_COORDINATOR_ADDRESS",
)
"""Variables that tell that a cluster manager may have started us."""

HEARTBEAT_S = 10
"""A host that has not been heard of for this long is dead; JAX ends the others."""
JOIN_S = 300
"""How long the first host waits for the others to start."""
LEAVE_S = 20
"""How long a host that is done waits for the others."""


@dataclass(frozen=True)
class Hosts:
    """How to find the other processes."""

    distributed: Literal["auto", "on", "off"] = "auto"
    """Join the cluster that is detected; insist on one; or run alone."""
    coordinator: str | None = None
    """HOST:PORT of process 0, on machines without a cluster manager."""
    processes: int | None = None
    """How many there are."""
    process: int | None = None
    """Which of them this is, from 0."""


def is_likely(hosts: Hosts) -> bool:
    """Whether there may be other processes, as far as can be told without jax."""
    asked = hosts.distributed == "on" or hosts.coordinator is not None
    return asked or (hosts.distributed == "auto" and any(name in os.environ for name in MANAGED))


def join(hosts: Hosts) -> None:
    """Become one of several processes, if there are several; before any other use of jax.

    Raises:
      ConfigError: the flags do not go together, no cluster is found though one
        was asked for, or the others did not come.
    """
    explicit = (hosts.coordinator, hosts.processes, hosts.process)
    if any(value is not None for value in explicit):
        if None in explicit:
            raise ConfigError(
                "--coordinator, --processes and --process belong together: give all three"
            )
        _initialize(*explicit)
    elif is_likely(hosts):
        try:
            _initialize()
        except ValueError as error:  # What JAX says where it detects no cluster.
            if hosts.distributed == "on":
                raise ConfigError(
                    f"no cluster was detected ({error}): TPU, Slurm, Kubernetes and Open MPI are "
                    "known. Give --coordinator HOST:PORT --processes N --process I"
                ) from error
        except ConfigError:
            raise
        except Exception as error:  # Of the cluster's own client, as in a pod that is no job's.
            raise ConfigError(
                f"a cluster was detected, but it does not say who we are ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:120]}). --distributed off trains alone"
            ) from error


def _initialize(*explicit: Any) -> None:
    import jax

    # It would swallow SIGTERM; the training loop has its own way to stop on all hosts at once.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            *explicit,
            heartbeat_timeout_seconds=HEARTBEAT_S,
            initialization_timeout=JOIN_S,
            shutdown_timeout_seconds=LEAVE_S,
        )
    except RuntimeError as error:
        raise ConfigError(
            f"the processes did not come together within {JOIN_S} s: start all of them, with the "
            f"same --coordinator and --processes. JAX says: {' '.join(str(error).split())[:120]}"
        ) from error
