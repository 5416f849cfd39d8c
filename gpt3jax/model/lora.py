"""Low-rank adaptation (LoRA): low-rank updates of the matrices of a layer.

    kernel + (alpha / rank) * a @ b        (Hu et al. 2021, arXiv 2106.09685)

The update is added to the kernel, one layer at a time and after the all-gather; the paper
multiplies the activations by both factors instead. The layer itself is thus unchanged on any mesh.
The cost is one merged layer of memory, 2 R I O FLOPs per matrix, and the gradient with respect to
the full matrix.

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
    """The parameters with LoRA merged into the kernels, and the model without LoRA.

    Without LoRA the parameters are returned unchanged.
    """
    if "lora" not in params["layers"]:
        return params, merged_model(model)
    layers = jax.vmap(lambda layer: apply_lora(layer, model))(params["layers"])
    return {**params, "layers": layers}, merged_model(model)


def merged_model(model: Model) -> Model:
    """The model for inference: no LoRA factors (they are merged), and no float8."""
    dtype = "auto" if model.dtype == "float8" else model.dtype
    return dataclasses.replace(model, lora_rank=0, dtype=dtype)


def apply_lora(layer: Params, model: Model) -> Params:
    """One layer, or this device's shard of it, with LoRA merged into its kernels."""
    if "lora" not in layer:
        return layer
    layer = dict(layer)
    for name, factors in layer.pop("lora").items():
        kernel, (a, b) = layer[name]["kernel"], (factors["a"], factors["b"])
        width = math.prod(a.shape[:-1])
        update_IO = jnp.matmul(
            a.reshape(width, -1), b.reshape(len(b), -1), preferred_element_type=jnp.float32
        )
        update = (model.lora_alpha / len(b) * update_IO).reshape(kernel.shape)
        layer[name] = layer[name] | {"kernel": (kernel + update).astype(kernel.dtype)}
    return layer
