"""A run's model as it was saved, laid out over the devices there are."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import jax

from gpt3jax.checkpoint.checkpointer import Checkpointer
from gpt3jax.config import Experiment, Model
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.errors import ConfigError
from gpt3jax.model.init import Params, abstract_params
from gpt3jax.model.lora import merged_model
from gpt3jax.run_dir import Run, open_run


@dataclass(frozen=True)
class LoadedModel:
    """What a checkpoint holds, and whose it is."""

    run: Run
    experiment: Experiment
    tokenizer: Tokenizer
    step: int
    params: Params

    @property
    def model(self) -> Model:
        """The shape of the parameters, in the dtype that they are read in: never float8."""
        trained = self.experiment.model
        return dataclasses.replace(trained, dtype=merged_model(trained).dtype)


def load_model(path: Path, step: int | None, mesh: jax.sharding.Mesh) -> LoadedModel:
    """A run's parameters at a step (the newest whole one if it is None), laid out over a mesh.

    Raises:
      ConfigError: there is no such run or checkpoint.
      DamagedError: it is not what was saved.
    """
    run = open_run(path)
    experiment = run.experiment()
    checkpoints = Checkpointer(run.checkpoints)
    abstract = abstract_params(experiment.model, mesh)
    tokenizer = Tokenizer.load(run.tokenizer_file, run.tokenizer_hash)
    steps = checkpoints.steps()
    if not steps:
        raise ConfigError(f"{run.path} has no checkpoint yet: it was stopped early. Train it first")
    if step is None:
        step, params = checkpoints.newest(
            lambda each: (each, checkpoints.restore_params(each, abstract)), _warn
        )
    elif step in steps:
        checkpoints.manifest(step)
        params = checkpoints.restore_params(step, abstract)
    else:
        raise ConfigError(f"{run.path} has no checkpoint of step {step}. It has {steps}")
    return LoadedModel(run, experiment, tokenizer, step, params)


def _warn(step: int, what: str) -> None:
    print(f"warning: checkpoint {step} was passed over: {what}", file=sys.stderr)
