"""Join the processes of a job with `jax.distributed`.

JAX detects the process index on TPU, Slurm, Kubernetes and Open MPI clusters; elsewhere three flags
give it. Importing this file does not import jax.
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
"""Environment variables that indicate a cluster manager."""

HEARTBEAT_S = 10
"""Heartbeat timeout, after which JAX considers a host dead and ends the others."""
JOIN_S = 300
"""Timeout for all hosts to start."""
LEAVE_S = 20
"""Timeout at exit for the other hosts to finish."""


@dataclass(frozen=True)
class Hosts:
    """How to find the other processes."""

    distributed: Literal["auto", "on", "off"] = "auto"
    """Join a cluster if one is detected; require one; or run as a single process."""
    coordinator: str | None = None
    """HOST:PORT of process 0, on machines without a cluster manager."""
    processes: int | None = None
    """Number of processes."""
    process: int | None = None
    """Index of this process, from 0."""


def is_likely(hosts: Hosts) -> bool:
    """Whether there may be other processes, determined without importing jax."""
    requested = hosts.distributed == "on" or hosts.coordinator is not None
    detected = any(name in os.environ for name in MANAGED)
    return requested or (hosts.distributed == "auto" and detected)


def join(hosts: Hosts) -> None:
    """Initialise `jax.distributed` if there are several processes; call before any use of jax.

    Raises:
      ConfigError: the flags are inconsistent, a required cluster was not detected, or the other
        processes did not join in time.
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
        except ValueError as error:  # JAX raises this if it detects no cluster.
            if hosts.distributed == "on":
                raise ConfigError(
                    f"no cluster was detected ({error}): TPU, Slurm, Kubernetes and Open MPI are "
                    "known. Give --coordinator HOST:PORT --processes N --process I"
                ) from error
        except ConfigError:
            raise
        except Exception as error:  # The cluster's client failed, as in a pod without a job.
            raise ConfigError(
                "a cluster was detected, but the index of this process was not "
                f"({type(error).__name__}: {' '.join(str(error).split())[:120]}). --distributed "
                "off trains as a single process"
            ) from error


def _initialize(*explicit: Any) -> None:
    import jax

    # The service would intercept SIGTERM, which the training loop handles on all hosts together.
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
            f"the processes did not all join within {JOIN_S} s: start all of them, with the "
            f"same --coordinator and --processes. JAX says: {' '.join(str(error).split())[:120]}"
        ) from error
