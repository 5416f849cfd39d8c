"""Import of GPT-2, GPT-Neo and Cerebras-GPT folders, and of other runs, as runs.

An imported run is at step 0 and has no data: it can be used like any other run, but must be given
data to be trained. No code in the folder is executed, and everything that is read is validated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from flax import traverse_util

from gpt3jax import serde
from gpt3jax.checkpoint.checkpointer import Checkpointer
from gpt3jax.checkpoint.manifest import CheckpointManifest
from gpt3jax.config import Data, Experiment, Mesh, Model, Schedule, Train
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.errors import ConfigError, truncate
from gpt3jax.interchange import huggingface
from gpt3jax.interchange.architecture import Family, from_config
from gpt3jax.interchange.export import open_checkpoint
from gpt3jax.interchange.safetensors import Tensor, read_folder
from gpt3jax.interchange.tokenizer_files import read_tokenizer
from gpt3jax.model.lora import merge_lora
from gpt3jax.model.param_specs import count_params, named_specs, param_specs
from gpt3jax.run_dir import Run, write_atomic
from gpt3jax.runtime.atomic_folder import atomic_folder, is_free
from gpt3jax.serde import short_hash
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.train.monitor import event_log
from gpt3jax.train.optimizers import make_optimizer
from gpt3jax.train.run_setup import check_writable
from gpt3jax.train.state import TrainState, abstract_state

Arrays = dict[str, np.ndarray]
"""Parameters by path, e.g. `layers/qkv/kernel`; layers are stacked."""
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Imported:
    """An imported model."""

    family: Family | str
    model: Model
    tokenizer: Tokenizer

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return count_params(self.model)


def import_(folder: Path, path: Path, progress: Progress = lambda what, share: None) -> Imported:
    """Import a model as a run, which is created atomically.

    Args:
      folder: a model saved by transformers, with safetensors and a tokenizer; or a run, whose
        newest checkpoint is used, whatever its mesh and dtype.
      path: the run directory; it must not exist or be empty.
      progress: called with each task and the fraction done.

    Raises:
      ConfigError: the folder cannot be imported, or `path` is not empty.
      DamagedError: the folder is a run without an intact checkpoint.
      SaveError: the checkpoint cannot be written.
    """
    check_writable(path)
    if not is_free(path):
        raise ConfigError(f"--run {path} is not empty: imports need a new folder. Choose another")
    if Run(folder).exists():
        imported, arrays = _from_run(Run(folder), progress)
    else:
        imported, arrays = _from_huggingface(folder, progress)
    if imported.tokenizer.vocabulary > imported.model.vocabulary:
        raise ConfigError(
            f"{folder}: its tokenizer has {imported.tokenizer.vocabulary} tokens, but the model "
            f"{imported.model.vocabulary}: they do not belong together. Get the folder again"
        )
    for name, values in arrays.items():
        if not np.isfinite(values).all():
            raise ConfigError(f"{folder}: {name} has values that are not finite. Get it again")
    with atomic_folder(path) as partial:
        _write(Run(partial), _experiment(folder, imported.model), imported, arrays, folder)
    return imported


def _from_run(run: Run, progress: Progress) -> tuple[Imported, Arrays]:
    """Read the parameters of a run, saved on any mesh, and merge LoRA."""
    model = run.experiment().model
    tokenizer = Tokenizer.load(run.tokenizer_file, run.tokenizer_hash)
    _, stored_params = open_checkpoint(run, None, progress)
    arrays = {path: stored_params.read(path).astype(np.float32) for path in stored_params.leaves}
    params, model = merge_lora(traverse_util.unflatten_dict(arrays, sep="/"), model)
    merged = cast(Arrays, traverse_util.flatten_dict(jax.tree.map(np.asarray, params), sep="/"))
    return Imported("gpt3jax", model, tokenizer), merged


def _from_huggingface(folder: Path, progress: Progress) -> tuple[Imported, Arrays]:
    try:
        config = serde.build(dict[str, Any], serde.read(folder / "config.json"))
    except FileNotFoundError:
        raise ConfigError(
            f"{folder} is not a model: it has no config.json. Give a folder saved by "
            "transformers, or a run"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}/config.json cannot be read: {error}. Get it again") from error
    family, model = from_config(config)
    tokenizer = read_tokenizer(folder)
    tensors = _check_tensors(read_folder(folder), family, model, folder)
    arrays = {
        path: np.zeros(spec.shape, np.float32) for path, spec in named_specs(param_specs(model))
    }
    for theirs, path in huggingface.TABLES.items():
        # Rows that pad the vocabulary are zero.
        arrays[path][: tensors[theirs].shape[0]] = tensors[theirs].read()
    if huggingface.HEAD in tensors:
        head = tensors[huggingface.HEAD].read().astype(np.float32)
        if (head.view(np.uint32) != arrays["token_embedding"][: len(head)].view(np.uint32)).any():
            raise ConfigError(
                f"{folder}: its {huggingface.HEAD} is not its token embedding, but our models tie "
                "them. It cannot be imported"
            )
    for theirs, kind in (("ln_f.weight", "gain"), ("ln_f.bias", "bias")):
        arrays[f"final_norm/{kind}"][:] = tensors[theirs].read()
    for index in range(model.n_layers):
        progress("reading", index / model.n_layers)
        prefix = f"h.{index}."
        layer = huggingface.from_layer(
            family,
            {
                name.removeprefix(prefix): tensor.read().astype(np.float32)
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            },
            model,
        )
        for name, kinds in layer.items():
            for kind, values in kinds.items():
                arrays[f"layers/{name}/{kind}"][index] = values
    progress("reading", 1.0)
    return Imported(family, model, tokenizer), arrays


def _check_tensors(
    tensors: dict[str, Tensor], family: Family, model: Model, folder: Path
) -> dict[str, Tensor]:
    """The model's tensors by name without prefix.

    Raises:
      ConfigError: a tensor is missing, unknown, duplicated, or has the wrong shape.
    """
    prefix = huggingface.PREFIX
    expected = {
        name.removeprefix(prefix): shape
        for name, shape in huggingface.shapes(family, model).items()
    }
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = name.removeprefix(prefix)
        if huggingface.LEFT_OUT.fullmatch(plain) and plain not in expected:
            continue
        shape = expected.get("wte.weight" if plain == huggingface.HEAD else plain)
        if shape is None or plain in result:
            what = "duplicated" if plain in result else "not one of the model's"
            raise ConfigError(
                f"{folder}: tensor {truncate(name, 80)} is {what}. Get the folder again"
            )
        if tensor.shape != shape:
            raise ConfigError(
                f"{folder}: tensor {truncate(name, 80)} has shape {list(tensor.shape)[:8]}, but "
                f"config.json gives {list(shape)}. Get the folder again"
            )
        result[plain] = tensor
    missing = next((name for name in expected if name not in result), None)
    if missing:
        raise ConfigError(f"{folder}: tensor {missing} is missing. Get the folder again")
    return result


def _experiment(folder: Path, model: Model) -> Experiment:
    """The experiment of an imported run; without data it cannot be trained."""
    name = re.sub(r"[^\w.,=+-]", "-", folder.resolve().name)[:100].lstrip(".,=+-")
    return Experiment(
        name=name or "imported",
        model=model,
        data=Data(sources=()),
        schedule=Schedule(peak_learning_rate=0.0),
        train=Train(batch_tokens=model.context),
    )


def _write(
    run: Run, experiment: Experiment, imported: Imported, arrays: Arrays, folder: Path
) -> None:
    """Write a run directory with a checkpoint at step 0 and new optimizer moments."""
    imported.tokenizer.save(run.tokenizer_file)
    data = {
        "tokenizer": imported.tokenizer.hash,
        "sources": [],
        "context": imported.model.context,
        "seed": experiment.seed,
    }
    identity = {**experiment.identity(), "data": data}
    write_atomic(run.identity_file, json.dumps(identity, indent=2) + "\n")
    event_log.record(
        run.ledger_file,
        "import",
        folder=folder.resolve().name,
        family=imported.family,
        parameters=imported.parameters,
        **event_log.code_version(),
    )

    def on_saved(manifest: CheckpointManifest) -> None:
        event_log.record(run.ledger_file, "save", step=0, sequences=0, state=manifest.state)

    mesh = make_mesh(Mesh(data=1), jax.devices()[:1])
    abstract = abstract_state(experiment, mesh)
    with jax.set_mesh(mesh):
        params = jax.tree_util.tree_map_with_path(
            lambda at, leaf: jax.device_put(
                arrays.pop(jax.tree_util.keystr(at, simple=True, separator="/")), leaf.sharding
            ),
            abstract.params,
        )
        state = TrainState(params, make_optimizer(experiment).init(params))
        checkpoints = Checkpointer(run.checkpoints, experiment.train.keep)
        try:
            draft = CheckpointManifest(0, 0, (), short_hash(identity), event_log.code_version(), {})
            checkpoints.save(state, draft, on_saved)
            checkpoints.wait()
        finally:
            checkpoints.close()
    # Written last, because a run exists once this file does.
    write_atomic(run.experiment_file, experiment.to_json())
