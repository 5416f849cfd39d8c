"""A run is a folder, complete in itself; this is what lies where in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt3jax.config import ConfigError, Experiment


@dataclass(frozen=True)
class Run:
    """Paths of a run, and what can be read from them without jax."""

    path: Path

    @property
    def experiment_file(self) -> Path:
        return self.path / "experiment.json"

    @property
    def identity_file(self) -> Path:
        return self.path / "identity.json"

    @property
    def tokenizer_file(self) -> Path:
        return self.path / "tokenizer.model"

    @property
    def ledger_file(self) -> Path:
        return self.path / "ledger.jsonl"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def lock_file(self) -> Path:
        return self.path / "lock"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    def stuck_file(self, process: int) -> Path:
        """Where a process that got stuck leaves the stacks of its threads."""
        return self.path / f"stuck-{process}.txt"

    def exists(self) -> bool:
        return self.experiment_file.exists()

    def experiment(self) -> Experiment:
        """The experiment as it was resolved when the run started."""
        return Experiment.from_json(self.experiment_file.read_text())

    def identity(self) -> dict[str, Any]:
        """What decides the numbers of this run: experiment and data."""
        return json.loads(self.identity_file.read_text())

    def metrics(self) -> list[dict[str, Any]]:
        """The logged records, in order of step."""
        if not self.metrics_file.exists():
            return []
        return [json.loads(line) for line in self.metrics_file.read_text().splitlines()]


def open_run(path: str | Path) -> Run:
    """An existing run.

    Raises:
      ConfigError: there is none.
    """
    run = Run(Path(path))
    if not run.exists():
        raise ConfigError(
            f"{path} is not a run: it has no experiment.json. "
            "Name the folder that `gpt3jax train` printed"
        )
    return run
