"""Checkpoints: the state and its position in the data, saved while training goes on.

The only module that touches Orbax; its v1 API is still marked experimental.
A step is one folder, `checkpoints/STEP`, renamed into place when complete.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from gpt3jax.config import ConfigError
from gpt3jax.train.state import TrainState

logging.getLogger("absl").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Position:
    """Where in the run a state is: Python integers, kept on the host."""

    step: int = 0
    sequences: int = 0
    """Windows consumed since the start."""


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, keep: int | None = None):
        """Open for writing when told how many to keep, otherwise only for reading."""
        policies = ocp.training.preservation_policies
        self._orbax = ocp.training.Checkpointer(
            folder.absolute(),
            preservation_policy=policies.LatestN(keep) if keep else policies.PreserveAll(),
            cleanup_tmp_directories=keep is not None,
        )
        self._saving: Any = None

    def save(self, state: TrainState, position: Position) -> None:
        """Start saving; returns once the state may be donated.

        Raises:
          Exception: this save could not start, or the one before it failed.
        """
        self.wait()
        if jax.default_backend() == "cpu":
            # Orbax would read the very buffers that the next step overwrites.
            state = jax.tree.map(jnp.copy, state)
        self._saving = self._orbax.save_checkpointables_async(
            position.step, _parts(state), custom_metadata=dataclasses.asdict(position), force=True
        )

    def wait(self) -> None:
        """Block until the last save is on disk; raise if it failed."""
        if self._saving is not None:
            self._saving.result()
            self._saving = None

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, ascending."""
        return sorted(saved.step for saved in self._orbax.checkpoints)

    def latest(self) -> Position | None:
        """The newest complete checkpoint, if there is one."""
        if not self.steps():
            return None
        saved = self._orbax.checkpointables_metadata(self.steps()[-1])
        return Position(**saved.custom_metadata)

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state of a step, laid out as `abstract` says, whatever mesh it was saved on."""
        parts = self._orbax.load_checkpointables(step, _parts(abstract))
        return TrainState(parts["params"], parts["optimizer"])

    def restore_params(self, step: int, abstract: TrainState) -> Any:
        """The parameters alone."""
        return self._orbax.load_checkpointables(step, {"params": abstract.params})["params"]

    def close(self) -> None:
        self.wait()
        self._orbax.close()


def _parts(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "optimizer": state.optimizer}


def pick_step(checkpoints: Checkpoints, step: int | None, run: Path) -> int:
    """The step to load: as asked, or the newest.

    Raises:
      ConfigError: there is no such checkpoint.
    """
    steps = checkpoints.steps()
    if not steps:
        raise ConfigError(f"{run} has no checkpoint yet: it was stopped too early. Train it first")
    if step is not None and step not in steps:
        raise ConfigError(f"{run} has no checkpoint of step {step}. It has {json.dumps(steps)}")
    return max(steps) if step is None else step
