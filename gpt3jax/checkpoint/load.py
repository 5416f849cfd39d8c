"""Load the model of a run from a checkpoint."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax

from gpt3jax.checkpoint.checkpointer import Checkpointer, Loaded
from gpt3jax.config import Experiment, Model
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.errors import ConfigError
from gpt3jax.model.init import Params, abstract_params
from gpt3jax.model.lora import merged_model
from gpt3jax.run_dir import Run, open_run


@dataclass(frozen=True)
class LoadedModel:
    """The parameters of a checkpoint, with the run they belong to."""

    run: Run
    experiment: Experiment
    tokenizer: Tokenizer
    step: int
    params: Params

    @property
    def model(self) -> Model:
        """The model of the parameters, LoRA included; float8 applies to training only."""
        trained = self.experiment.model
        return dataclasses.replace(trained, dtype=merged_model(trained).dtype)


def load_model(path: Path, step: int | None, mesh: jax.sharding.Mesh) -> LoadedModel:
    """The parameters of a run at a step (the newest intact one if None), sharded over a mesh.

    Raises:
      ConfigError: there is no such run or checkpoint.
      DamagedError: the checkpoint differs from what was saved.
    """
    run = open_run(path)
    experiment = run.experiment()
    abstract = abstract_params(experiment.model, mesh)
    tokenizer = Tokenizer.load(run.tokenizer_file, run.tokenizer_hash)

    def load(checkpoints: Checkpointer, each: int) -> LoadedModel:
        params = checkpoints.restore_params(each, abstract)
        return LoadedModel(run, experiment, tokenizer, each, params)

    return load_step(run, step, load)


def load_step(run: Run, step: int | None, load: Callable[[Checkpointer, int], Loaded]) -> Loaded:
    """The result of `load` for the checkpoint of a step, or for the newest intact one if None.

    The files are compared with the manifest before `load` is called.

    Raises:
      ConfigError: there is no such checkpoint.
      DamagedError: it, or each, differs from what was saved.
    """
    checkpoints = Checkpointer(run.checkpoints)
    steps = checkpoints.steps()
    if not steps:
        raise ConfigError(f"{run.path} has no checkpoint yet: it was stopped early. Train it first")
    if step is None:
        newest = checkpoints.newest(lambda each: load(checkpoints, each), _warn)
        assert newest is not None  # Since `steps` is not empty.
        return newest
    if step not in steps:
        raise ConfigError(f"{run.path} has no checkpoint of step {step}. It has {steps}")
    checkpoints.manifest(step)
    return load(checkpoints, step)


def _warn(step: int, reason: str) -> None:
    print(f"warning: checkpoint {step} was skipped: {reason}", file=sys.stderr)
