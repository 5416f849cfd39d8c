"""Capture intermediate activations of a forward pass by name, on one device or a mesh.

    saved = load_model(Path("runs/tiny"), None, mesh)
    with jax.set_mesh(mesh):
        output = capture(saved.params, tokens_BT, saved.model, want=("residual", "heads"))
        output.activations["residual"]      # [N, B, T, D]

`capture` runs the same layers as `forward`, which trains and decodes; capturing does not change
the logits, and other activations are not stored. On a mesh each layer's weights are all-gathered
as in training, so that no device stores all of them, and activations are returned sharded: the
residual stream over tokens, heads over heads.

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
"""Activations of shape [N, B, T, H, K]; all others are [N, B, T, D]."""


@partial(jax.jit, static_argnames=("model", "want", "edit"))
def capture(
    params: Params,
    tokens_BT: jax.Array,
    model: Model,
    want: tuple[str, ...] = ("residual",),
    edit: Edit | None = None,
) -> Output:
    """Logits [B, T, V] of texts, and the requested activations.

    Args:
      params: parameters as returned by `load_model`, sharded over the current mesh, if any.
      tokens_BT: int32 token ids, replicated on all devices.
      model: the model.
      want: names of activations in `EDIT_POINTS`; see `forward`. `embedded` is [B, T, D]; the
        others have a leading layer axis.
      edit: as for `forward`. Each function is compiled separately, so reuse it.

    Raises:
      ConfigError: a name is unknown.
    """
    unknown = [name for name in want if name not in EDIT_POINTS]
    if unknown:
        raise ConfigError(
            f"there is no activation {unknown[0]!r} to capture. Choose from "
            f"{', '.join(EDIT_POINTS)}"
        )
    T = tokens_BT.shape[1]
    mesh = jax.sharding.get_abstract_mesh()
    padding = 0 if mesh.empty else -T % mesh.shape["tensor"]
    # Tokens are sharded between layers. Attention is causal, so padding on the right has no effect.
    tokens_BT = jnp.pad(tokens_BT, ((0, 0), (0, padding)))
    run = shard_map(
        partial(_stream, model=model, want=want, edit=edit),
        in_specs=(partition_specs(param_specs(model)), PartitionSpec()),
        out_specs=(PartitionSpec(None, "tensor"), {name: _spec(name) for name in want}),
    )
    x_BTD, padded = run(params, tokens_BT)
    logits_BTV = unembed(head(params, model), x_BTD[:, :T], model)
    unpadded = {name: a[:, :T] if name == "embedded" else a[:, :, :T] for name, a in padded.items()}
    return Output(logits_BTV[..., : model.vocabulary], None, unpadded)


def attention_of(activations: dict[str, jax.Array], layer: int, model: Model) -> jax.Array:
    """Attention weights of one layer, [B, H, T, T] float32 (query, key); each row sums to 1.

    Args:
      activations: the captured `queries` and `keys`.
      layer: index of the layer. The weights of all layers, N x H x T x T, may not fit.
      model: the model; keys outside the band have weight 0.
    """
    band = None if model.is_dense(layer) else model.band
    return _weights(activations["queries"], activations["keys"], layer, band)


@jax.jit
def of_layer(activation: jax.Array, layer: int) -> jax.Array:
    """One layer of a captured activation of one text: [N, 1, T, ...] to [T, ...]."""
    return activation[layer, 0]


@partial(jax.jit, static_argnames="band")
def _weights(queries, keys, layer, band):
    return attention.attention_weights(queries[layer], keys[layer], band)


def _stream(params, tokens_BT, *, model, want, edit):
    x_BTD, _, captured = hidden_states(params, tokens_BT, model, edit=edit, want=want, remat=False)
    return x_BTD, {
        name: a if name == "embedded" else jnp.stack(list(a)) for name, a in captured.items()
    }


def _spec(name: str) -> PartitionSpec:
    """The sharding of an activation."""
    if name == "embedded":
        return PartitionSpec(None, "tensor")
    if name in OF_HEADS:
        return PartitionSpec(None, None, None, "tensor")
    return PartitionSpec(None, None, "tensor")
