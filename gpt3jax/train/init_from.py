"""The run that a fine-tuned one begins from: found, compared, and read. It is never written to."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from gpt3jax import serde
from gpt3jax.checkpoint.checkpointer import Checkpointer
from gpt3jax.checkpoint.manifest import DamagedError, read_manifest
from gpt3jax.config import Data, Experiment
from gpt3jax.data import loader
from gpt3jax.errors import ConfigError
from gpt3jax.model.init import Params, abstract_params, init_params
from gpt3jax.model.lora import merge_lora
from gpt3jax.run_dir import Run, open_run
from gpt3jax.serde import Count
from gpt3jax.sharding import processes
from gpt3jax.train.run_setup import check_base
from gpt3jax.train.state import TrainState, abstract_state, init_sharded_state, with_fresh_moments


@dataclass(frozen=True)
class Parent:
    """Whose parameters a run began with, as its identity has it."""

    path: str
    """The run's folder: absolute, but as it was named in runs from before that."""
    step: Count
    state: str
    """Identifies every bit of the checkpoint: see Seal."""


def find(experiment: Experiment) -> Parent:
    """The checkpoint that `init_from` names, when a run starts; damaged ones are passed over.

    Raises:
      ConfigError: there is none, or the model or the tokenizer is another.
      DamagedError: it is not whole, nor is one before it.
    """
    path, step = check_base(experiment)
    checkpoints = Checkpointer(open_run(path).checkpoints)
    steps = checkpoints.steps()
    if not steps:
        raise ConfigError(
            f"--init-from {path} has no checkpoint yet: it was stopped early. Train it"
        )
    if step is not None and step not in steps:
        raise ConfigError(f"--init-from {path} has no checkpoint {step}, only {steps}. Name one")
    damage = None
    for each in [step] if step is not None else reversed(steps):
        try:
            return Parent(os.path.abspath(path), each, checkpoints.manifest(each).state)
        except DamagedError as error:
            damage = damage or DamagedError(f"--init-from {path}: checkpoint {each}: {error}")
    raise damage


def parent_of(run: Run) -> Parent | None:
    """Where a run began, if not from a seed.

    Raises:
      ConfigError: it does not say so in words that can be read.
    """
    found = run.identity().get("parent")
    if found is None:
        return None
    try:
        parent = serde.build(Parent, found)
    except ValueError as error:
        raise ConfigError(
            f"{run.identity_file} cannot be read: its parent: {error}. Restore it"
        ) from error
    path = run.locate(parent.path, lambda at: _is_at(Run(at), parent))
    return dataclasses.replace(parent, path=path)


def _is_at(run: Run, parent: Parent) -> bool:
    try:
        return read_manifest(run.checkpoints / str(parent.step)).state == parent.state
    except DamagedError:
        return False


def first_state(run: Run, experiment: Experiment, mesh: Mesh) -> TrainState:
    """State 0 of a run, on the mesh: drawn from the seed, or its parent's parameters.

    A parent's LoRA is merged into its matrices; one of this run's own begins anew.

    Raises:
      ConfigError: the parent is not there any more, or is another.
      DamagedError: it is not whole.
    """
    found = processes.on_first(lambda: (parent := parent_of(run)) and dataclasses.asdict(parent))
    if found is None:
        return init_sharded_state(experiment, mesh)
    parent = Parent(**found)
    base = open_run(parent.path)
    checkpoints = Checkpointer(base.checkpoints)
    there = parent.step in checkpoints.steps() and checkpoints.manifest(parent.step).state
    if there != parent.state:
        raise ConfigError(
            f"{run.path} began from checkpoint {parent.step} of {parent.path}, which is not there "
            "any more, or another: it has no state of its own yet. Restore that, or give another "
            "--run"
        )
    before = base.experiment()
    params = checkpoints.restore_params(parent.step, abstract_params(before.model, mesh))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(experiment, mesh))
    with jax.set_mesh(mesh):
        begin = partial(_begun, base_model=before.model, experiment=experiment)
        # In place, but where the parent's own factors find no place in it.
        donated = () if before.model.lora_rank else 0
        return jax.jit(begin, donate_argnums=donated, out_shardings=shardings)(params)


def _begun(params: Params, *, base_model: Any, experiment: Experiment) -> TrainState:
    """A state that begins from the parameters of another run."""
    params, _ = merge_lora(params, base_model)
    if experiment.model.lora_rank:
        drawn = init_params(jax.random.key(experiment.seed), experiment.model)
        layers = params["layers"] | {"lora": drawn["layers"]["lora"]}
        params = {**params, "layers": layers}
    return with_fresh_moments(params, experiment)


def base_data(run: Run) -> tuple[Data | None, str]:
    """What a run's parent was trained on; and if that cannot be read any more, why not."""
    parent = parent_of(run)
    if parent is None:
        return None, ""
    try:
        base = open_run(parent.path)
        experiment = base.experiment()
        found = loader.identity(experiment.data, experiment.seed, experiment.model.context)
        if found != base.identity()["data"]:
            raise ConfigError("it is not the data that it was trained on")
        loader.held_out(experiment.data, 1, experiment.model.context)
    except ConfigError as error:
        return None, f"base_val_loss is not measured: the data of {parent.path}: {error}"
    return experiment.data, ""
