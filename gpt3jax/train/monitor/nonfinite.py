"""Incident reports of steps whose loss or gradient is not finite, with the first bad tensor.

Legend: B windows, T context, N layers.
"""

from __future__ import annotations

import dataclasses
import html
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from gpt3jax.checkpoint.array_hash import named_leaves
from gpt3jax.config import Model
from gpt3jax.data.loader import Windows
from gpt3jax.data.pairs import shown
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.model.gpt3 import hidden_states
from gpt3jax.model.init import Params
from gpt3jax.model.param_specs import param_specs
from gpt3jax.run_dir import Run
from gpt3jax.sharding.axes import AXES
from gpt3jax.sharding.collectives import psum, shard_map
from gpt3jax.sharding.rules import partition_spec, partition_specs
from gpt3jax.train.loss import tokens_read, window_loss

SHOWN = 64
"""Maximum number of windows whose text is shown."""


@dataclass(frozen=True)
class Incident:
    """A non-finite step and its first bad tensor."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    sequences: range
    """The windows of the batch, counted from the start of the run."""
    first_bad: str
    """The first non-finite tensor in the order of computation, and its layer."""
    replay: str
    """The command that replays the step."""


def first_bad(params: Params, windows_MBT1: jax.Array, count: int, model: Model) -> str:
    """The first non-finite tensor for these parameters and windows.

    In the order of computation: parameters, the residual stream after each layer, the logits, the
    gradients from the last layer to the first.
    """
    find = jax.jit(partial(_finite, model=model))
    for index in range(count):
        bad = _first(jax.tree.map(np.asarray, find(params, windows_MBT1[index])))
        if bad:
            return f"{bad} (microbatch {index + 1} of {count})"
    return "none any more: the parameters have changed since, by the step after it"


def _finite(params: Params, windows_BT1: jax.Array, *, model: Model) -> dict[str, Any]:
    """Whether each parameter and gradient, the residual stream and the loss are finite."""
    parts = partition_specs(param_specs(model))
    check = shard_map(
        partial(_finite_here, model=model),
        in_specs=(parts, partition_spec(("batch", None))),
        out_specs=PartitionSpec(),
    )
    return check(params, windows_BT1)


def _finite_here(params: Params, windows_BT1: jax.Array, *, model: Model) -> dict[str, Any]:
    tokens_BT = tokens_read(windows_BT1[:, :-1])
    _, _, activations = hidden_states(params, tokens_BT, model, want=("finite",), remat=False)
    (loss, _), gradients = jax.value_and_grad(partial(window_loss, model=model), has_aux=True)(
        params, windows_BT1
    )
    finite = {
        "parameters": jax.tree_util.tree_map_with_path(_by_layer, params),
        "stream": jnp.stack(list(activations["finite"])),
        "loss": jnp.isfinite(loss),
        "gradients": jax.tree_util.tree_map_with_path(_by_layer, gradients),
    }
    return jax.tree.map(lambda ok: psum((~ok).astype(jnp.int32), *AXES) == 0, finite)


def _by_layer(path: tuple, leaf: jax.Array) -> jax.Array:
    """Whether a leaf is finite; for stacked leaves, per layer."""
    is_stacked = path[0].key == "layers"
    return jnp.isfinite(leaf).all(axis=tuple(range(int(is_stacked), leaf.ndim)))


def _first(finite: dict[str, Any]) -> str | None:
    for name, ok in named_leaves(finite["parameters"]).items():
        if not ok.all():
            return f"parameter {name}{_layer(ok, first=True)}"
    if not finite["stream"].all():
        return f"residual stream after layer {int(np.argmin(finite['stream']))}"
    if not finite["loss"]:
        return "logits and loss"
    bad = {name: ok for name, ok in named_leaves(finite["gradients"]).items() if not ok.all()}
    if not bad:
        return None
    # The backward pass begins at the last layer and ends at the embeddings.
    name = max(bad, key=lambda name: _highest(bad[name]))
    return f"gradient of {name}{_layer(bad[name], first=False)}"


def _highest(ok: np.ndarray) -> int:
    return int(np.flatnonzero(~ok)[-1]) if ok.ndim else -1


def _layer(ok: np.ndarray, *, first: bool) -> str:
    if not ok.ndim:
        return ""
    return f", layer {int(np.argmin(ok)) if first else _highest(ok)}"


def write(run: Run, incident: Incident, order: Windows) -> Path:
    """Write RUN/incidents/STEP: incident.json, and index.html with the text of the batch."""
    folder = run.incidents / str(incident.step)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.load(run.tokenizer_file, run.tokenizer_hash)
    windows = []
    for sequence in incident.sequences[:SHOWN]:
        place = order.locate(sequence)
        where = f"window {sequence}: {place.source}, epoch {place.epoch}, record {place.window}"
        windows.append((where, shown(order[sequence], tokenizer)))
    record = dataclasses.asdict(incident) | {
        "sequences": [incident.sequences.start, incident.sequences.stop],
        "loss": str(incident.loss),
        "grad_norm": str(incident.grad_norm),
        "windows": [where for where, _ in windows],
    }
    (folder / "incident.json").write_text(json.dumps(record, indent=2) + "\n")
    page = folder / "index.html"
    page.write_text(_page(incident, windows), encoding="utf-8")
    return page


def _page(incident: Incident, windows: list[tuple[str, str]]) -> str:
    facts = {
        "first tensor that is not finite": incident.first_bad,
        "loss, nats/token": incident.loss,
        "gradient norm": incident.grad_norm,
        "learning rate": incident.learning_rate,
        "windows": f"{incident.sequences.start} to {incident.sequences.stop - 1}",
        "to do it again": incident.replay,
    }
    rows = "".join(
        f"<tr><th>{html.escape(name)}<td>{html.escape(str(value))}" for name, value in facts.items()
    )
    texts = "".join(
        f"<details><summary>{html.escape(where)}</summary><pre>{html.escape(text)}</pre></details>"
        for where, text in windows
    )
    left_out = len(incident.sequences) - len(windows)
    rest = f"<p>{left_out} more windows are not shown." if left_out else ""
    style = (
        ":root{color-scheme:light dark}"
        "body{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "th{text-align:left;padding-right:2rem;vertical-align:top}"
        "pre{white-space:pre-wrap;border-left:3px solid #D55E00;padding-left:1rem}"
    )
    return (
        "<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>step {incident.step}: not finite</title><style>{style}</style>"
        f"<h1>Step {incident.step} was not finite</h1><p>Its update was not applied.</p>"
        f"<table>{rows}</table><h2>The batch</h2>{texts}{rest}\n"
    )
