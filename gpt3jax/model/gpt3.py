"""The GPT-3 forward pass (section 2.1), used in training, evaluation and decoding.

    tokens -> embedding + position -> N x [ + attention(norm), + mlp(norm) ] -> norm -> logits

Legend: B batch, T tokens, D model width, H heads, K head width, V vocabulary
(padded), S slots of the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from gpt3jax.config import Model
from gpt3jax.model import attention
from gpt3jax.model.init import Params
from gpt3jax.model.layers import embed, layer_norm, mlp, unembed, unstack
from gpt3jax.model.linear import linear, linear_sum
from gpt3jax.model.lora import apply_lora
from gpt3jax.model.mup import query_scale
from gpt3jax.model.param_specs import param_specs
from gpt3jax.model.quantized import Quantized
from gpt3jax.sharding.collectives import all_gather_params, axis_size, is_per_device, platform

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

Edit = Callable[[str, int | jax.Array, jax.Array], jax.Array]
"""Called with (name, layer, value) at each of `EDIT_POINTS`; returns the value to use instead. With
scanned layers `layer` is a traced integer: select with `jnp.where(layer == 3, ...)`, not with
`if`. It is -1 for `embedded`. Under `shard_map` the value is this device's shard."""

EDIT_POINTS = ("embedded", "queries", "keys", "values", "heads", "attention", "mlp", "residual")
"""Names of the activations that can be edited and returned, in execution order; see `forward`."""

MOST_UNROLLED = 32
"""Layers up to which `scan_layers` auto unrolls; compilation takes time in proportion to them."""

SAVED_BY_REMAT_POLICY = {
    "none": ("qkv", "context", "middle", "hidden", "activated", "normed"),
    "dots": ("qkv", "context", "middle", "hidden"),
    "mlp": ("qkv", "context", "middle"),
    "full": (),
}
"""Activations of a layer that are saved for the backward pass besides its input, by `Model.remat`.
On a single CPU `none` saves everything. Gathered weights and kernels merged with LoRA are never
saved."""


@struct.dataclass
class Cache:
    """KV cache: one [B, H, S, K] array of keys, and one of values, per layer."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    length: jax.Array
    """int32, filled slots: [B], or a scalar if all rows have the same length (faster to update)."""
    distance: jax.Array | None = None
    """int32 [B, T, S + T], for T new tokens that are not consecutive (beam search): the distance,
    in the new token's own text, to each slot and to each new token; negative means masked."""


@struct.dataclass
class Output:
    """The result of a forward pass."""

    logits: jax.Array
    """[B, T, V], float32."""
    cache: Cache | None
    activations: dict[str, Any]
    """The activations named in `want`; the first index of each is the layer."""


def forward(
    params: Params,
    tokens_BT: jax.Array,
    model: Model,
    *,
    cache: Cache | None = None,
    positions_BT: jax.Array | None = None,
    edit: Edit | None = None,
    want: Collection[str] = (),
) -> Output:
    """Next-token logits at each position.

    Args:
      params: parameters as described by `param_specs`; `layers` stacked, or a list (`unstack`).
      tokens_BT: int32 token ids; at most `model.context` tokens including the cached ones. A row
        with an id outside the vocabulary becomes NaN, and all rows do if the cache overflows.
      model: the model's configuration.
      cache: the earlier tokens; `Output.cache` is then the cache extended by the new tokens.
      positions_BT: int32, the position of each token in its own text, for rows that hold several
        texts. It selects the position embedding and limits attention; negative for padding.
      edit: a pure function that replaces activations (`Edit`).
      want: names of activations to return, after any edit. Per layer: `residual` (the residual
        stream after the layer, [B, T, D]), `attention` and `mlp` (what each adds to it),
        `queries`, `keys`, `values`, `heads` (attention output before the projection,
        [B, T, H, K]) and `finite` (whether all of `residual` is finite, boolean). Not per layer:
        `embedded` (the residual stream before the first layer, [B, T, D]).
    """
    x_BTD, cache, activations = hidden_states(
        params, tokens_BT, model, cache=cache, positions_BT=positions_BT, edit=edit, want=want
    )
    with jax.named_scope("unembed"):
        logits_BTV = unembed(head(params, model), x_BTD, model)
    return Output(logits_BTV, cache, activations)


def hidden_states(
    params: Params,
    tokens_BT: jax.Array,
    model: Model,
    *,
    cache: Cache | None = None,
    positions_BT: jax.Array | None = None,
    edit: Edit | None = None,
    want: Collection[str] = (),
    remat: bool = True,
) -> tuple[jax.Array, Cache | None, dict[str, Any]]:
    """`forward` without the head: the residual stream [B, T, D] after the last layer.

    `model.remat` applies to stacked layers without a cache, unless `remat` is False.
    """
    params = _cast(params, model)
    with jax.named_scope("embed"):
        tables = {name: params[name] for name in ("token_embedding", "position_embedding")}
        tables = all_gather_params(tables, param_specs(model))
        start: Any = 0 if cache is None else cache.length
        embedded_BT = positions_BT
        if positions_BT is None and jnp.ndim(start) == 1:
            embedded_BT = start[:, None] + jnp.arange(tokens_BT.shape[1])
        x_BTD = embed(tables, tokens_BT, start, model.vocabulary, embedded_BT)
    if edit is not None:
        x_BTD = edit("embedded", -1, x_BTD)
    before = {"embedded": x_BTD} if "embedded" in want else {}
    of_layers, layers = [name for name in want if name != "embedded"], params["layers"]
    if cache is None and isinstance(layers, dict) and scans_layers(model):
        x_BTD, activations = _scan(layers, x_BTD, model, positions_BT, edit, of_layers, remat)
        return x_BTD, None, before | activations

    per_layer: Any = unstack(layers, model.n_layers) if isinstance(layers, dict) else layers
    names = {*of_layers, "keys", "values"} if cache is not None else of_layers
    is_trained = remat and cache is None and isinstance(layers, dict)
    run, records = _layer(model, positions_BT, names, is_trained), []
    for index, layer in enumerate(per_layer):
        if edit is not None:
            run = _layer(model, positions_BT, names, is_trained, partial(_at, edit, index))
        layer_cache = cache and (
            cache.keys[index],
            cache.values[index],
            cache.length,
            cache.distance,
        )
        x_BTD, recorded = run(layer, x_BTD, layer_cache, model.is_dense(index))
        records.append(recorded)
    activations = {name: [recorded[name] for recorded in records] for name in names}
    if cache is not None:
        # On overflow JAX would clamp indices and silently overwrite the last slots.
        slots, positions = cache.keys[0].shape[2], len(tables["position_embedding"])
        most = slots if positions_BT is not None else min(slots, positions)
        has_room = start + tokens_BT.shape[1] <= most
        has_room = has_room[:, None, None] if has_room.ndim else has_room
        x_BTD = jnp.where(has_room, x_BTD, jnp.nan)
        cache = _append(cache, activations["keys"], activations["values"])
    return x_BTD, cache, before | {name: activations[name] for name in of_layers}


def block(
    params: Params,
    x_BTD: jax.Array,
    attend: Attend,
    model: Model,
    edit: Callable[[str, jax.Array], jax.Array] = lambda name, value: value,
) -> tuple[jax.Array, dict[str, Any]]:
    """One pre-norm transformer block; returns its output and its activations by name.

    `attend` maps queries, keys and values [B, T, H, K] to the same shape; `edit` maps
    (name, value) to the value to use.
    """
    with jax.named_scope("attention"):
        h_BTD = checkpoint_name(layer_norm(params["norm_1"], x_BTD), "normed")
        q, k, v = queries_keys_values(params["qkv"], h_BTD, model)
        scale = query_scale(model)
        q = q if scale == 1 else q * scale
        q, k, v = edit("queries", q), edit("keys", k), edit("values", v)
        heads_BTHK = edit("heads", attend(q, k, v))
        attended_BTD = edit("attention", linear_sum(params["out"], heads_BTHK, model, n_in=2))
        x_BTD = checkpoint_name(x_BTD + attended_BTD, "middle")
    with jax.named_scope("mlp"):
        h_BTD = checkpoint_name(layer_norm(params["norm_2"], x_BTD), "normed")
        mlp_BTD = edit("mlp", mlp(params, h_BTD, model))
        x_BTD = edit("residual", x_BTD + mlp_BTD)
    return x_BTD, {
        "queries": q, "keys": k, "values": v, "heads": heads_BTHK, "attention": attended_BTD,
        "mlp": mlp_BTD, "residual": x_BTD, "finite": jnp.isfinite(x_BTD).all(),
    }  # fmt: skip


def queries_keys_values(params: Params, x_BTD: jax.Array, model: Model) -> list[jax.Array]:
    """Queries, keys and values, [B, T, H, K] each.

    On GPUs by three products: cuDNN's kernel would need copies of the slices of a joint one, which
    cost 8 % of the memory traffic of a step. Elsewhere slices are fused, and one product is faster.
    """
    if is_per_device() and platform() == "gpu" and axis_size("tensor") == 1:
        parts = [{name: leaf[..., z, :] for name, leaf in params.items()} for z in range(3)]
        return [checkpoint_name(linear(part, x_BTD, model), "qkv") for part in parts]
    qkv_BTHZK = checkpoint_name(linear(params, x_BTD, model), "qkv")
    return [qkv_BTHZK[..., z, :] for z in range(3)]


def head(params: Params, model: Model) -> Params:
    """The parameters of `unembed`, all-gathered, in the dtype of activations."""
    names = ("token_embedding", "final_norm")
    return all_gather_params(
        {name: _cast(params[name], model) for name in names}, param_specs(model)
    )


def _cast(tree: Any, model: Model) -> Any:
    """Cast parameters to the dtype of activations; quantized ones are cast when multiplied."""

    def cast(leaf: Any) -> Any:
        return leaf if isinstance(leaf, Quantized) else leaf.astype(compute_dtype(model))

    return jax.tree.map(cast, tree, is_leaf=lambda leaf: isinstance(leaf, Quantized))


def compute_dtype(model: Model) -> jnp.dtype:
    """The dtype of activations: the configured one, or the platform's default."""
    if model.dtype in ("auto", "float8"):
        return jnp.dtype("float32" if platform() == "cpu" else "bfloat16")
    return jnp.dtype(model.dtype)


def scans_layers(model: Model) -> bool:
    """Whether a forward pass without a cache loops over the layers instead of unrolling them.

    A loop costs 8 to 15 % of a step on an H200 and a third to a half on CPUs, in copies of each
    layer's weights and gradients. TPUs, and models of more than `MOST_UNROLLED` layers, loop:
    compilation would take minutes.
    """
    if model.scan_layers != "auto":
        return model.scan_layers
    return platform() == "tpu" or model.n_layers > MOST_UNROLLED


def _at(edit: Edit, layer: int | jax.Array, name: str, value: jax.Array) -> jax.Array:
    """`edit` with the layer bound first, in the form that `block` takes."""
    return edit(name, layer, value)


def _layer(
    model: Model,
    positions_BT: jax.Array | None,
    want: Collection[str],
    remat: bool,
    edit: Callable[[str, jax.Array], jax.Array] = lambda name, value: value,
) -> Callable[..., tuple]:
    """The layer function (params, x, layer_cache, is_dense) -> (x, activations), with remat."""
    specs = param_specs(model)["layers"]

    def run(params, x_BTD, layer_cache, is_dense):
        attend = _attention_of(model, layer_cache, positions_BT, is_dense)
        params = apply_lora(all_gather_params(params, specs), model)
        x_BTD, recorded = block(params, x_BTD, attend, model, edit)
        return x_BTD, {name: recorded[name] for name in want}

    is_alone = platform() == "cpu" and axis_size("fsdp", "tensor") == 1
    if not remat or (model.remat == "none" and is_alone and not model.lora_rank):
        return run
    return jax.checkpoint(
        run,
        policy=_policy(SAVED_BY_REMAT_POLICY[model.remat]),
        # Outside a loop, XLA's CSE would merge the recomputation with the original.
        prevent_cse=not scans_layers(model),
        static_argnums=() if scans_layers(model) else (3,),
    )


def _policy(saved: Collection[str]) -> Callable[..., Any]:
    """A remat policy that saves these names; `context` includes the outputs of cuDNN's kernel."""
    is_named = jax.checkpoint_policies.save_only_these_names(*saved)

    def policy(primitive: Any, *values: Any, **options: Any) -> Any:
        if primitive.name == attention.CUDNN:
            return "context" in saved
        return is_named(primitive, *values, **options)

    return policy


def _attention_of(
    model: Model,
    layer_cache: tuple | None,
    positions_BT: jax.Array | None,
    is_dense: bool | jax.Array,
) -> Attend:
    """Dense or banded attention, over a cache if given; a traced `is_dense` uses `lax.cond`."""
    if layer_cache is None:
        kind = partial(attention.causal_attention, positions_BT=positions_BT)
    else:
        kind = partial(attention.cached_attention, layer_cache=layer_cache)
    dense, banded = partial(kind, band=None), partial(kind, band=model.band)
    if isinstance(is_dense, bool):
        return dense if is_dense else banded
    if all(map(model.is_dense, range(model.n_layers))):
        return dense
    return lambda q, k, v: jax.lax.cond(is_dense, dense, banded, q, k, v)


def _scan(
    layers: Params,
    x_BTD: jax.Array,
    model: Model,
    positions_BT: jax.Array | None,
    edit: Edit | None,
    want: Collection[str],
    remat: bool,
):
    """Scan over the stacked layers: one body is compiled for dense and banded layers."""
    run = _layer(model, positions_BT, want, remat)
    is_dense_N = jnp.array([model.is_dense(index) for index in range(model.n_layers)])

    def step(x_BTD, layer):
        body = run
        if edit is not None:
            body = _layer(model, positions_BT, want, remat, partial(_at, edit, layer[2]))
        return body(layer[0], x_BTD, None, layer[1])

    numbers = () if edit is None else (jnp.arange(model.n_layers),)
    return jax.lax.scan(step, x_BTD, (layers, is_dense_N, *numbers))


def _append(cache: Cache, keys: list[jax.Array], values: list[jax.Array]) -> Cache:
    """Append the new [B, T, H, K] keys and values to the cache."""
    at_slot = jax.lax.dynamic_update_slice_in_dim

    def write(slots_BHSK, new_BTHK):
        new_BHTK = new_BTHK.transpose(0, 2, 1, 3).astype(slots_BHSK.dtype)
        if cache.length.ndim == 0:
            return at_slot(slots_BHSK, new_BHTK, cache.length, axis=2)
        return jax.vmap(partial(at_slot, axis=1))(slots_BHSK, new_BHTK, cache.length)

    return Cache(
        keys=tuple(map(write, cache.keys, keys)),
        values=tuple(map(write, cache.values, values)),
        length=cache.length + keys[0].shape[1],
    )
