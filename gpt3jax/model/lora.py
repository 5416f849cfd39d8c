"""Low-rank adaptation: a layer's matrices, changed by products of two thin factors.

    kernel + (alpha / rank) * a @ b        (Hu et al. 2021, arXiv 2106.09685)

The change is added to the kernel, layer by layer and after it was fetched, where
the paper multiplies the activations twice. So a layer is computed as ever, on any
mesh. It costs one changed layer in memory at a time, 2 R I O FLOPs for a matrix of
I x O and rank R, and the gradient by the whole matrix on the way to its factors'.

Legend: R rank, I in, O out.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from gpt3jax.config import Model
from gpt3jax.model.init import Params


def merge_lora(params: Params, model: Model) -> tuple[Params, Model]:
    """Parameters that hold the changes in their kernels, and the model that has no others.

    Without LoRA, both are as they were.
    """
    if "lora" not in params["layers"]:
        return params, merged_model(model)
    layers = jax.vmap(lambda layer: apply_lora(layer, model))(params["layers"])
    return {**params, "layers": layers}, merged_model(model)


def merged_model(model: Model) -> Model:
    """The model that training leaves: LoRA's changes are in its kernels, products in no float8."""
    dtype = "auto" if model.dtype == "float8" else model.dtype
    return dataclasses.replace(model, lora_rank=0, dtype=dtype)


def apply_lora(layer: Params, model: Model) -> Params:
    """One layer, whole or this device's part of it, with its changes in its kernels."""
    if "lora" not in layer:
        return layer
    layer = dict(layer)
    for name, factors in layer.pop("lora").items():
        kernel, (a, b) = layer[name]["kernel"], (factors["a"], factors["b"])
        width = math.prod(a.shape[:-1])
        change_IO = jnp.matmul(
            a.reshape(width, -1), b.reshape(len(b), -1), preferred_element_type=jnp.float32
        )
        change = (model.lora_alpha / len(b) * change_IO).reshape(kernel.shape)
        layer[name] = layer[name] | {"kernel": (kernel + change).astype(kernel.dtype)}
    return layer
