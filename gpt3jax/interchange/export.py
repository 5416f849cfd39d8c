"""Export of a run's model for transformers: as GPT-2 if it is dense, as GPT-Neo if banded.

The checkpoint is verified, tensors are converted one at a time to safetensors, and config,
tokenizer and model card are written. The folder is renamed to its final path once the
certificate is issued.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from gpt3jax.checkpoint.checkpointer import Checkpointer
from gpt3jax.checkpoint.load import load_step
from gpt3jax.checkpoint.manifest import CheckpointManifest, read_manifest
from gpt3jax.checkpoint.partial_read import StoredParams
from gpt3jax.config import Model
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.errors import ConfigError, RunError
from gpt3jax.interchange import huggingface
from gpt3jax.interchange.architecture import Family, family_of, to_config
from gpt3jax.interchange.card import card
from gpt3jax.interchange.certificate import Certificate, Source, certify
from gpt3jax.interchange.safetensors import FLOATS, Shapes, write_folder
from gpt3jax.interchange.tokenizer_files import write_tokenizer
from gpt3jax.model.lora import merged_model
from gpt3jax.model.mup import width_ratio
from gpt3jax.run_dir import Run, open_run
from gpt3jax.runtime.atomic_folder import atomic_folder, is_free
from gpt3jax.train.resume import check_is_own
from gpt3jax.train.run_setup import identities

Dtype = Literal["float32", "bfloat16"]
DTYPES: dict[Dtype, np.dtype] = {"float32": FLOATS["F32"], "bfloat16": FLOATS["BF16"]}
SPARE = 64 << 20
"""Bytes reserved for files other than weights."""
Progress = Callable[[str, float], None]
"""Called with the name of a task and the fraction of it that is done."""


def export(
    path: Path,
    out: Path,
    *,
    dtype: Dtype = "float32",
    step: int | None = None,
    progress: Progress = lambda what, share: None,
) -> Certificate:
    """Write an exported model to `out`, which is created atomically once it is verified.

    Args:
      path: the run.
      out: the folder; it must not exist or be empty.
      dtype: dtype of the weights.
      step: step of the checkpoint; default: the newest intact one.
      progress: called with each task and the fraction done.

    Raises:
      ConfigError: transformers has no such model, or `out` is not empty.
      DamagedError: the checkpoint is damaged.
      CertificateError: the exported model does not compute the same logits as the run.
      RunError: there is not enough disk space.
    """
    model = merged_model(open_run(path).experiment().model)
    family = family_of(model)
    source = open_source(path, out, step, progress)
    with atomic_folder(out) as folder:
        tensors = _tensors(family, source.params, model, progress)
        write_weights(folder, huggingface.shapes(family, model), dtype, tensors)
        _write_config(folder, model, source.tokenizer, dtype)
        write_tokenizer(folder, source.tokenizer, model.context)
        progress("comparing", 0.0)
        certificate = certify(folder, source, source.facts(family, dtype))
        certificate.write(folder)
        text = card(source.run, source.manifest, certificate)
        (folder / "README.md").write_text(text, encoding="utf-8")
    progress("comparing", 1.0)
    return certificate


def open_source(path: Path, out: Path, step: int | None, progress: Progress) -> Source:
    """The checkpoint of a run that is exported to `out`, by default the newest intact one.

    Raises:
      ConfigError: `out` is not empty, or there is no such run or checkpoint.
      DamagedError: the checkpoint is damaged.
    """
    run = open_run(path)
    if not is_free(out):
        raise ConfigError(f"--out {out} is not empty: exports need a new folder. Choose another")
    tokenizer = Tokenizer.load(run.tokenizer_file, run.tokenizer_hash)
    manifest, params = open_checkpoint(run, step, progress)
    return Source(run, merged_model(params.model), tokenizer, manifest, params)


def open_checkpoint(
    run: Run, step: int | None, progress: Progress
) -> tuple[CheckpointManifest, StoredParams]:
    """Open a checkpoint, by default the newest intact one, and verify its hashes."""
    known = identities(run)

    def load(checkpoints: Checkpointer, each: int) -> tuple[CheckpointManifest, StoredParams]:
        manifest = read_manifest(checkpoints.path(each))
        check_is_own(manifest, each, known)
        return manifest, checkpoints.open_params(each, run.experiment().model)

    progress("hashes", 0.0)
    checkpoint = load_step(run, step, load)
    progress("hashes", 1.0)
    return checkpoint


def _tensors(
    family: Family, params: StoredParams, model: Model, progress: Progress
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values in the order of `huggingface.shapes`; one tensor is in memory at a time."""
    prefix = huggingface.PREFIX
    for name, ours in huggingface.TABLES.items():
        # Rows that pad the vocabulary are not exported.
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
        # muP divides logits by the width ratio; transformers does not, so the norm does.
        yield f"{prefix}ln_f.{name}", params.read(f"final_norm/{kind}") / width_ratio(model)
    progress("writing", 1.0)


def _write_config(folder: Path, model: Model, tokenizer: Tokenizer, dtype: Dtype) -> None:
    """Write config.json, and generation_config.json with the defaults of `gpt3jax generate`."""
    end = tokenizer.end_of_text
    sampling = {
        "bos_token_id": end, "eos_token_id": end, "pad_token_id": end,
        "do_sample": True, "temperature": 0.8, "top_k": 0, "top_p": 1.0,
    }  # fmt: skip
    if model.vocabulary > tokenizer.vocabulary:
        # The tokenizer has no text for these ids.
        sampling["suppress_tokens"] = list(range(tokenizer.vocabulary, model.vocabulary))
    config = to_config(model, dtype, end) | {"pad_token_id": end}
    for name, record in (("config.json", config), ("generation_config.json", sampling)):
        (folder / name).write_text(json.dumps(record, indent=2) + "\n")


def write_weights(
    folder: Path, shapes: Shapes, dtype: Dtype, tensors: Iterator[tuple[str, np.ndarray]]
) -> None:
    """Write tensors as `write_folder` does.

    Raises:
      RunError: the disk has too little space for them.
    """
    need = sum(map(math.prod, shapes.values())) * DTYPES[dtype].itemsize + SPARE
    free = shutil.disk_usage(folder).free
    if need > free:
        raise RunError(
            f"the export needs {need / 1e9:.3g} GB, but {folder.parent} has {free / 1e9:.3g} GB "
            "free. Free some, or use --dtype bfloat16"
        )
    write_folder(folder, shapes, DTYPES[dtype], tensors)
