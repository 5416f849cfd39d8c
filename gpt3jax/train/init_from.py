"""Begin from the checkpoint of another run (`init_from`), which is only read.

Fine-tuning takes its parameters; a branch (`inherit="state"`) continues it with another schedule.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from gpt3jax import serde
from gpt3jax.checkpoint.checkpointer import Checkpointer, Position
from gpt3jax.checkpoint.manifest import DamagedError, read_manifest
from gpt3jax.config import Data, Experiment
from gpt3jax.data import loader
from gpt3jax.errors import ConfigError
from gpt3jax.model.init import Params, abstract_params, init_params
from gpt3jax.model.lora import merge_lora
from gpt3jax.run_dir import Run, open_run, write_atomic
from gpt3jax.serde import Count
from gpt3jax.sharding import processes
from gpt3jax.train.run_setup import check_base
from gpt3jax.train.state import TrainState, abstract_state, init_sharded_state, with_fresh_moments


@dataclass(frozen=True)
class Parent:
    """The checkpoint that a run was initialised from, as recorded in the run's identity."""

    path: str
    """The run directory, absolute; runs of earlier versions may have a relative path."""
    step: Count
    state: str
    """Hash of the checkpoint: `CheckpointManifest.state`."""


def find_parent(experiment: Experiment) -> Parent:
    """The checkpoint that `init_from` names, at the start of a run; skips damaged ones.

    Raises:
      ConfigError: there is no checkpoint, or the model or the tokenizer differs.
      DamagedError: no checkpoint is intact.
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
    assert damage is not None  # Since `steps` is not empty.
    raise damage


def parent_of(run: Run) -> Parent | None:
    """The checkpoint that a run was initialised from; None if from a seed.

    Raises:
      ConfigError: the record cannot be parsed.
    """
    record = run.identity().get("parent")
    if record is None:
        return None
    try:
        parent = serde.build(Parent, record)
    except ValueError as error:
        raise ConfigError(
            f"{run.identity_file} cannot be read: its parent: {error}. Restore it"
        ) from error
    path = run.locate(parent.path, lambda at: _is_at(Run(at), parent))
    return dataclasses.replace(parent, path=path)


def inherit_skips(run: Run, parent: Parent) -> None:
    """Skip the batches that a new branch's parent had skipped, since windows are counted alike."""
    skips = read_manifest(Run(Path(parent.path)).checkpoints / str(parent.step)).skips
    if skips:
        text = json.dumps([dataclasses.asdict(skip) for skip in skips], indent=2)
        write_atomic(run.skips_file, text + "\n")


def _is_at(run: Run, parent: Parent) -> bool:
    try:
        return read_manifest(run.checkpoints / str(parent.step)).state == parent.state
    except DamagedError:
        return False


def first_state(run: Run, experiment: Experiment, mesh: Mesh) -> tuple[TrainState, Position]:
    """The first state of a run on the mesh, and its position.

    State 0 is initialised from the seed or from the parent's parameters: the parent's LoRA is
    merged into its kernels, and LoRA factors of this run are initialised anew. A branch begins with
    the parent's state, at its step and position in the data.

    Raises:
      ConfigError: the parent is missing or has changed.
      DamagedError: the parent is damaged.
    """
    record = processes.on_first(lambda: (parent := parent_of(run)) and dataclasses.asdict(parent))
    if record is None:
        return init_sharded_state(experiment, mesh), Position()
    parent = Parent(**record)
    base = open_run(parent.path)
    checkpoints = Checkpointer(base.checkpoints)
    state = parent.step in checkpoints.steps() and checkpoints.manifest(parent.step).state
    if state != parent.state:
        raise ConfigError(
            f"{run.path} began from checkpoint {parent.step} of {parent.path}, which is not there "
            "any more, or another: it has no state of its own yet. Restore that, or give another "
            "--run"
        )
    abstract = abstract_state(experiment, mesh)
    if experiment.inherit == "state":
        sequences = checkpoints.manifest(parent.step).sequences
        return checkpoints.restore(parent.step, abstract), Position(parent.step, sequences)
    before = base.experiment()
    params = checkpoints.restore_params(parent.step, abstract_params(before.model, mesh))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    with jax.set_mesh(mesh):
        begin = partial(_begun, base_model=before.model, experiment=experiment)
        # Donated, except with LoRA in the parent, whose factors are not part of the result.
        donated = () if before.model.lora_rank else 0
        begin = jax.jit(begin, donate_argnums=donated, out_shardings=shardings)
        return begin(params), Position()


def _begun(params: Params, *, base_model: Any, experiment: Experiment) -> TrainState:
    """The initial state for the parameters of another run."""
    params, _ = merge_lora(params, base_model)
    if experiment.model.lora_rank:
        initial = init_params(jax.random.key(experiment.seed), experiment.model)
        layers = params["layers"] | {"lora": initial["layers"]["lora"]}
        params = {**params, "layers": layers}
    return with_fresh_moments(params, experiment)


def base_data(run: Run) -> tuple[Data | None, str]:
    """The data of a run's parent, and, if it can no longer be read, the reason."""
    parent = parent_of(run)
    if parent is None:
        return None, ""
    try:
        base = open_run(parent.path)
        experiment = base.experiment()
        current = loader.identity(experiment.data, experiment.seed, experiment.model.context)
        if current != base.identity()["data"]:
            raise ConfigError("it is not the data that it was trained on")
        loader.held_out(experiment.data, 1, experiment.model.context)
    except ConfigError as error:
        return None, f"base_val_loss is not measured: the data of {parent.path}: {error}"
    return experiment.data, ""
