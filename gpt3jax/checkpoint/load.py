"""Load the model of a run from a checkpoint."""

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
    checkpoints = Checkpointer(run.checkpoints)
    abstract = abstract_params(experiment.model, mesh)
    tokenizer = Tokenizer.load(run.tokenizer_file, run.tokenizer_hash)
    steps = checkpoints.steps()
    if not steps:
        raise ConfigError(f"{run.path} has no checkpoint yet: it was stopped early. Train it first")
    if step is None:
        newest = checkpoints.newest(
            lambda each: (each, checkpoints.restore_params(each, abstract)), _warn
        )
        assert newest is not None  # Since `steps` is not empty.
        step, params = newest
    elif step in steps:
        checkpoints.manifest(step)
        params = checkpoints.restore_params(step, abstract)
    else:
        raise ConfigError(f"{run.path} has no checkpoint of step {step}. It has {steps}")
    return LoadedModel(run, experiment, tokenizer, step, params)


def _warn(step: int, reason: str) -> None:
    print(f"warning: checkpoint {step} was passed over: {reason}", file=sys.stderr)
