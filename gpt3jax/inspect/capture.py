"""What a forward pass computes on its way, asked for by name; on one device or a mesh.

    saved = load_model(Path("runs/tiny"), None, mesh)
    with jax.set_mesh(mesh):
        output = capture(saved.params, tokens_BT, saved.model, want=("residual", "heads"))
        output.activations["residual"]      # [N, B, T, D]

It is `forward` that runs, the function that trains and writes: what is not asked
for is not kept, and asking changes no logit. On a mesh weights are fetched layer by
layer as in training, no device holds all of them, and what comes back stays split:
the stream by tokens, heads by head.

Legend: N layers, B rows, T tokens, D model width, H heads, K head width, V vocabulary.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gpt3jax.config import Model
from gpt3jax.errors import ConfigError
from gpt3jax.model import attention
from gpt3jax.model.gpt3 import EDIT_POINTS, Edit, Output, head, hidden_states
from gpt3jax.model.init import Params
from gpt3jax.model.layers import unembed
from gpt3jax.model.param_specs import param_specs
from gpt3jax.sharding.collectives import shard_map
from gpt3jax.sharding.rules import partition_specs

OF_HEADS = ("queries", "keys", "values", "heads")
"""Activations [N, B, T, H, K]; the others are as wide as the stream, [N, B, T, D]."""


@partial(jax.jit, static_argnames=("model", "want", "edit"))
def capture(
    params: Params,
    tokens_BT: jax.Array,
    model: Model,
    want: tuple[str, ...] = ("residual",),
    edit: Edit | None = None,
) -> Output:
    """Read whole texts: logits [B, T, V], and the activations that are wanted.

    Args:
      params: as `load_model` gives them, laid out over the mesh in use, if there is one.
      tokens_BT: int32 token ids; every device reads all rows.
      model: its shape.
      want: names out of `EDIT_POINTS`, which `forward` explains. `embedded` is [B, T, D]; the
        others lead with the layer.
      edit: as `forward` takes it. Compiled anew for each function: keep and reuse them.

    Raises:
      ConfigError: there is no activation of such a name.
    """
    unknown = [name for name in want if name not in EDIT_POINTS]
    if unknown:
        raise ConfigError(
            f"there is no activation {unknown[0]!r} to capture. Choose of {', '.join(EDIT_POINTS)}"
        )
    T = tokens_BT.shape[1]
    mesh = jax.sharding.get_abstract_mesh()
    missing = 0 if mesh.empty else -T % mesh.shape["tensor"]
    # Between layers a device has its share of the tokens. What follows a text leaves no trace.
    tokens_BT = jnp.pad(tokens_BT, ((0, 0), (0, missing)))
    run = shard_map(
        partial(_stream, model=model, want=want, edit=edit),
        in_specs=(partition_specs(param_specs(model)), PartitionSpec()),
        out_specs=(PartitionSpec(None, "tensor"), {name: _spec(name) for name in want}),
    )
    x_BTD, found = run(params, tokens_BT)
    logits_BTV = unembed(head(params, model), x_BTD[:, :T], model)
    cut = {name: a[:, :T] if name == "embedded" else a[:, :, :T] for name, a in found.items()}
    return Output(logits_BTV[..., : model.vocabulary], None, cut)


def attention_of(activations: dict[str, jax.Array], layer: int, model: Model) -> jax.Array:
    """Attention weights of one layer, [B, H, T, T] float32: query by key, each row adds up to 1.

    Args:
      activations: with `queries` and `keys`, as `capture` gives them.
      layer: which. One at a time: all of them grow with N x H x T x T.
      model: its shape; what a band hides has weight 0.
    """
    band = None if model.is_dense(layer) else model.band
    return _weights(activations["queries"], activations["keys"], layer, band)


@jax.jit
def of_layer(activation: jax.Array, layer: int) -> jax.Array:
    """One layer of what was captured of one text: [N, 1, T, ...] to [T, ...]."""
    return activation[layer, 0]


@partial(jax.jit, static_argnames="band")
def _weights(queries, keys, layer, band):
    return attention.attention_weights(queries[layer], keys[layer], band)


def _stream(params, tokens_BT, *, model, want, edit):
    x_BTD, _, found = hidden_states(params, tokens_BT, model, edit=edit, want=want, remat=False)
    stacked = {name: a if name == "embedded" else jnp.stack(list(a)) for name, a in found.items()}
    return x_BTD, stacked


def _spec(name: str) -> PartitionSpec:
    """Where an activation lies on the mesh."""
    if name == "embedded":
        return PartitionSpec(None, "tensor")
    if name in OF_HEADS:
        return PartitionSpec(None, None, None, "tensor")
    return PartitionSpec(None, None, "tensor")
