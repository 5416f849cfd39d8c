"""Conversion of parameters to and from the names and layouts of transformers, layer by layer.

The conversion renames, splits, reorders, transposes and, for GPT-Neo, scales tensors. For GPT-2
it is exact. GPT-Neo does not divide attention scores by sqrt(K), so its query weights are ours
divided by sqrt(K). Each direction rounds to float32 once. This is exact if K is a power of 4, and
importing, exporting and importing again gives the same bits for any K
(tests/parity/test_huggingface.py).

Legend: D model width, H heads, K head width, Z query, key or value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpt3jax.config import Model
from gpt3jax.errors import ConfigError
from gpt3jax.interchange.architecture import Family
from gpt3jax.interchange.safetensors import Shapes
from gpt3jax.model.mup import query_scale

Layer = dict[str, Any]
"""One layer of our parameter tree, unstacked; arrays are layer["qkv"]["kernel"] etc."""
Read = Callable[[str], dict[str, np.ndarray]]
"""Reads the arrays of one module of a layer from disk, e.g. read("qkv")["kernel"]."""
Tensors = dict[str, np.ndarray]

PREFIX = "transformer."
TABLES = {"wte.weight": "token_embedding", "wpe.weight": "position_embedding"}
HEAD = "lm_head.weight"
LEFT_OUT = re.compile(r"h\.\d+\.attn\.(attention\.)?(bias|masked_bias)")
"""Causal masks, which older versions of transformers stored with the weights."""


def shapes(family: Family, model: Model) -> Shapes:
    """Names and shapes of all tensors in transformers' order; the head is tied to `wte`."""
    d = model.d_model
    result: Shapes = {"wte.weight": (model.vocabulary, d), "wpe.weight": (model.context, d)}
    for index in range(model.n_layers):
        result |= {f"h.{index}.{name}": shape for name, shape in _layer_shapes(family, d).items()}
    result |= {"ln_f.weight": (d,), "ln_f.bias": (d,)}
    return {PREFIX + name: shape for name, shape in result.items()}


def _layer_shapes(family: Family, d: int) -> Shapes:
    """Names and shapes of a layer's tensors in transformers' order."""
    norms = {f"ln_{i}.{kind}": (d,) for i in (1, 2) for kind in ("weight", "bias")}
    f = 4 * d
    if family == "gpt2":
        return norms | {
            "attn.c_attn.weight": (d, 3 * d), "attn.c_attn.bias": (3 * d,),
            "attn.c_proj.weight": (d, d), "attn.c_proj.bias": (d,),
            "mlp.c_fc.weight": (d, f), "mlp.c_fc.bias": (f,),
            "mlp.c_proj.weight": (f, d), "mlp.c_proj.bias": (d,),
        }  # fmt: skip
    return norms | {
        **{f"attn.attention.{z}_proj.weight": (d, d) for z in ("q", "k", "v", "out")},
        "attn.attention.out_proj.bias": (d,),
        "mlp.c_fc.weight": (f, d), "mlp.c_fc.bias": (f,),
        "mlp.c_proj.weight": (d, f), "mlp.c_proj.bias": (d,),
    }  # fmt: skip


def to_layer(family: Family, read: Read, model: Model) -> Iterator[tuple[str, np.ndarray]]:
    """Convert a layer; yields names within the layer and values, in transformers' order.

    For GPT-Neo, q, k and v must have no bias; see `fold`.
    """
    for i in (1, 2):
        norm = read(f"norm_{i}")
        yield f"ln_{i}.weight", norm["gain"]
        yield f"ln_{i}.bias", norm["bias"]
    d, is_gpt2 = model.d_model, family == "gpt2"
    qkv, attention = read("qkv"), "attn" if is_gpt2 else "attn.attention"
    if is_gpt2:
        yield "attn.c_attn.weight", qkv["kernel"].swapaxes(1, 2).reshape(d, -1)
        yield "attn.c_attn.bias", qkv["bias"].swapaxes(0, 1).reshape(-1)
    else:
        q, k, v = (qkv["kernel"][:, :, z].reshape(d, -1).T for z in range(3))
        yield f"{attention}.q_proj.weight", _scaled(q, 1 / math.sqrt(model.d_head))
        yield f"{attention}.k_proj.weight", k
        yield f"{attention}.v_proj.weight", v
        del q, k, v
    del qkv
    out = "c_proj" if is_gpt2 else "out_proj"
    for name, ours in ((f"{attention}.{out}", "out"), ("mlp.c_fc", "up"), ("mlp.c_proj", "down")):
        linear = read(ours)
        kernel = linear["kernel"].reshape(-1, linear["kernel"].shape[-1])
        yield f"{name}.weight", kernel if is_gpt2 else kernel.T  # GPT-Neo's are [out, in].
        yield f"{name}.bias", linear["bias"]


def from_layer(family: Family, tensors: Tensors, model: Model) -> Layer:
    """The inverse of `to_layer`."""
    d, h, k = model.d_model, model.n_heads, model.d_head
    norms = {
        f"norm_{i}": {"gain": tensors[f"ln_{i}.weight"], "bias": tensors[f"ln_{i}.bias"]}
        for i in (1, 2)
    }
    if family == "gpt2":
        attention = "attn.c_proj"
        qkv_DZHK = tensors["attn.c_attn.weight"].reshape(d, 3, h, k)
        qkv_ZHK = tensors["attn.c_attn.bias"].reshape(3, h, k)
        kernels = {name: tensors[f"{name}.weight"] for name in _KERNELS}
        out_kernel_DD = tensors["attn.c_proj.weight"]
    else:
        attention = "attn.attention.out_proj"
        of_q, of_k, of_v = (tensors[f"attn.attention.{z}_proj.weight"].T for z in "qkv")
        qkv_DZHK = np.stack([_scaled(of_q, math.sqrt(k)), of_k, of_v], 1).reshape(d, 3, h, k)
        qkv_ZHK = np.zeros((3, h, k), np.float32)
        kernels = {name: tensors[f"{name}.weight"].T for name in _KERNELS}
        out_kernel_DD = tensors["attn.attention.out_proj.weight"].T
    return {
        **norms,
        "qkv": {"kernel": qkv_DZHK.swapaxes(1, 2), "bias": qkv_ZHK.swapaxes(0, 1)},
        "out": {
            "kernel": out_kernel_DD.reshape(h, k, d), "bias": tensors[f"{attention}.bias"],
        },
        "up": {"kernel": kernels["mlp.c_fc"], "bias": tensors["mlp.c_fc.bias"]},
        "down": {"kernel": kernels["mlp.c_proj"], "bias": tensors["mlp.c_proj.bias"]},
    }  # fmt: skip


_KERNELS = ("mlp.c_fc", "mlp.c_proj")


def _scaled(kernel: np.ndarray, factor: float | np.ndarray) -> np.ndarray:
    """Multiply in float64 and round to float32 once."""
    return (kernel.astype(np.float64) * factor).astype(np.float32)


def at_scale(read: Read, model: Model) -> Read:
    """Fold muP's scale of attention scores into the query weights and biases.

    This rounds to float32 once, unless the scale is a power of 2.
    """
    scale = query_scale(model)
    if scale == 1:
        return read

    def scaled(name: str) -> dict[str, np.ndarray]:
        arrays = read(name)
        if name != "qkv":
            return arrays
        factor_Z1 = np.array([[scale], [1.0], [1.0]])
        return {kind: _scaled(values, factor_Z1) for kind, values in arrays.items()}

    return scaled


def fold(read: Read, model: Model, index: int) -> Read:
    """Fold the biases of q, k and v, which GPT-Neo does not have, into other biases.

    A key bias adds the same value to all scores of a query, which the softmax cancels. A query
    bias equals a shift of the projections' input, W_q^T shift = b_q, which is added to the bias
    of the norm. That shift also reaches the keys, where it cancels too, and the values. Because
    attention weights sum to 1, a shift of the values is added to the output bias.

    Args:
      read: reads the layer.
      model: the model.
      index: index of the layer, for messages.

    Raises:
      ConfigError: W_q is singular, so that no such shift exists.
    """
    qkv = read("qkv")
    bias_HZK = qkv["bias"]
    if not bias_HZK.any():
        return read
    d, norm, out = model.d_model, read("norm_1"), read("out")
    w_q, w_v = (qkv["kernel"][:, :, z].reshape(d, -1).astype(np.float64) for z in (0, 2))
    b_q, b_v = (bias_HZK[:, z].reshape(-1).astype(np.float64) for z in (0, 2))
    try:
        shift_D = np.linalg.solve(w_q.T, b_q) if b_q.any() else np.zeros(d)
    except np.linalg.LinAlgError as error:
        raise ConfigError(
            f"layer {index}: its query bias cannot be folded into other biases because its query "
            "weights are singular, and GPT-Neo has no query bias. The run cannot be exported"
        ) from error
    w_o = out["kernel"].reshape(-1, d).astype(np.float64)
    folded = {
        "norm_1": {**norm, "bias": _add(norm["bias"], shift_D)},
        "qkv": {**qkv, "bias": np.zeros_like(bias_HZK)},
        "out": {**out, "bias": _add(out["bias"], (b_v - shift_D @ w_v) @ w_o)},
    }
    return lambda name: folded[name] if name in folded else read(name)


def _add(bias: np.ndarray, delta: np.ndarray) -> np.ndarray:
    return (bias.astype(np.float64) + delta).astype(np.float32)
