"""A run's model as a folder that transformers loads: GPT-2 if it is dense, GPT-Neo if banded.

checkpoint -> hashes -> one tensor at a time -> safetensors -> config, tokenizer, card
           -> certificate -> the folder gets its name
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from gpt3jax.checkpoint.checkpointer import Checkpointer
from gpt3jax.checkpoint.manifest import read_manifest
from gpt3jax.checkpoint.partial_read import StoredParams
from gpt3jax.config import Model
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.errors import ConfigError, RunError
from gpt3jax.interchange import huggingface
from gpt3jax.interchange.architecture import Family, family_of, to_config
from gpt3jax.interchange.card import card
from gpt3jax.interchange.certificate import Certificate, certify
from gpt3jax.interchange.safetensors import FLOATS, Shapes, write_folder
from gpt3jax.interchange.tokenizer_files import write_tokenizer
from gpt3jax.model.lora import merged_model
from gpt3jax.model.mup import width_ratio
from gpt3jax.model.param_specs import count_params
from gpt3jax.run_dir import Run, open_run
from gpt3jax.runtime.atomic_folder import atomic_folder, is_free
from gpt3jax.train.resume import check_is_own
from gpt3jax.train.run_setup import identities

Dtype = Literal["float32", "bfloat16"]
DTYPES: dict[Dtype, np.dtype] = {"float32": FLOATS["F32"], "bfloat16": FLOATS["BF16"]}
SPARE = 64 << 20
"""Bytes for all that is not weights."""
Progress = Callable[[str, float], None]


def export(
    path: Path, out: Path, *, dtype: Dtype = "float32", step: int | None = None,
    progress: Progress = lambda what, share: None,
) -> Certificate:  # fmt: skip
    """Write a model's folder; it appears whole, when all of it holds.

    Args:
      path: the run.
      out: the folder; not there yet, or empty.
      dtype: what weights are stored as.
      step: of the checkpoint; the newest that is whole, if not given.
      progress: called with what is done, and the share of it.

    Raises:
      ConfigError: the shape has no name there, or `out` holds something.
      DamagedError: the checkpoint is not what was saved.
      CertificateError: the folder does not compute what the run does.
      RunError: the disk is too small.
    """
    run = open_run(path)
    model = merged_model(run.experiment().model)  # LoRA is merged as it is read.
    family = family_of(model)
    check_is_new(out)
    tokenizer = Tokenizer.load(run.tokenizer_file, run.tokenizer_hash)
    step, params = opened(run, step, progress)
    with atomic_folder(out) as folder:
        shapes = huggingface.shapes(family, model)
        check_space(folder, shapes, DTYPES[dtype])
        tensors = _tensors(family, params, model, progress)
        write_folder(folder, shapes, DTYPES[dtype], tensors)
        _write_config(folder, model, tokenizer, dtype)
        write_tokenizer(folder, tokenizer, model.context)
        progress("comparing", 0.0)
        found = read_manifest(run.checkpoints / str(step))
        certificate = certify(
            folder, params, model, tokenizer, family=family, dtype=dtype,
            parameters=count_params(model), step=step, state=found.state,
        )  # fmt: skip
        certificate.write(folder)
        text = card(run, run.experiment(), found, certificate)
        (folder / "README.md").write_text(text, encoding="utf-8")
    progress("comparing", 1.0)
    return certificate


def opened(run: Run, step: int | None, progress: Progress) -> tuple[int, StoredParams]:
    """A checkpoint, each of its hashes compared; the newest that is whole, if none is named."""
    checkpoints, model = Checkpointer(run.checkpoints), run.experiment().model
    known, steps = identities(run), checkpoints.steps()
    progress("hashes", 0.0)

    def load(each: int) -> tuple[int, StoredParams]:
        check_is_own(read_manifest(checkpoints.path(each)), each, known)
        return each, checkpoints.open_params(each, model)

    if step is not None:
        if step not in steps:
            raise ConfigError(f"{run.path} has no checkpoint of step {step}. It has {steps}")
        found = load(step)
    else:
        found = checkpoints.newest(load, _warn)
        if found is None:
            raise ConfigError(f"{run.path} has no checkpoint yet. Train it first")
    progress("hashes", 1.0)
    return found


def _warn(step: int, what: str) -> None:
    print(f"warning: checkpoint {step} was passed over: {what}", file=sys.stderr)


def _tensors(
    family: Family, params: StoredParams, model: Model, progress: Progress
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values, in the order of `huggingface.shapes`; one at a time is in memory."""
    prefix = huggingface.PREFIX
    for name, ours in huggingface.TABLES.items():
        # Rows that pad the vocabulary stay here.
        rows = model.vocabulary if ours == "token_embedding" else model.context
        yield prefix + name, params.leaves[ours].read(0, rows)
    for index in range(model.n_layers):
        progress("writing", index / model.n_layers)
        read = huggingface.at_scale(partial(params.layer, index), model)
        if family == "gpt_neo":
            read = huggingface.fold(read, model, index)
        for name, values in huggingface.to_layer(family, read, model):
            yield f"{prefix}h.{index}.{name}", values
    for name, kind in (("weight", "gain"), ("bias", "bias")):
        # Of which muP's logits are made.
        yield f"{prefix}ln_f.{name}", params.read(f"final_norm/{kind}") / width_ratio(model)
    progress("writing", 1.0)


def _write_config(folder: Path, model: Model, tokenizer: Tokenizer, dtype: Dtype) -> None:
    """config.json, and generation_config.json: draw as `gpt3jax generate` does."""
    end = tokenizer.end_of_text
    drawing = {
        "bos_token_id": end, "eos_token_id": end, "pad_token_id": end,
        "do_sample": True, "temperature": 0.8, "top_k": 0, "top_p": 1.0,
    }  # fmt: skip
    if model.vocabulary > tokenizer.vocabulary:
        # They stand for no text: never written.
        drawing["suppress_tokens"] = list(range(tokenizer.vocabulary, model.vocabulary))
    config = to_config(model, dtype, end) | {"pad_token_id": end}
    for name, record in (("config.json", config), ("generation_config.json", drawing)):
        (folder / name).write_text(json.dumps(record, indent=2) + "\n")


def check_is_new(out: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
      ConfigError: it does.
    """
    if not is_free(out):
        raise ConfigError(f"--out {out} holds something: a model's folder is new. Choose another")


def check_space(folder: Path, shapes: Shapes, dtype: np.dtype) -> None:
    """Refuse to begin what the disk has no room for.

    Raises:
      RunError: so it is.
    """
    need = sum(map(math.prod, shapes.values())) * dtype.itemsize + SPARE
    free = shutil.disk_usage(folder).free
    if need > free:
        raise RunError(
            f"the export needs {need / 1e9:.3g} GB, but {folder.parent} has {free / 1e9:.3g} GB "
            "free. Free some, or use --dtype bfloat16"
        )
