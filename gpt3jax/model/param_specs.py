"""Shape, logical axes and initialiser of every parameter.

Initialisation, sharding, parameter counts, planning, restore and export all derive from
`param_specs`. Layers are stacked on a leading axis, so the number of leaves does not depend on the
number of layers. Importing this file does not import jax.

Legend: N layers, V vocabulary (padded), P positions, D model width, H heads,
K head width, F MLP width, R rank of LoRA.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from gpt3jax.config import Model
from gpt3jax.model.mup import width_ratio

LOGIT_ROWS = {"cpu": 2048, "tpu": 2048, "gpu": 8192}
"""Maximum rows of logits in memory at a time, over all devices along `tensor`, by platform.

On an H200, 8,192 rows make a step of GPT-3 Small 4 % faster than 2,048, and 32,768 no faster."""

ParamSpecs = dict[str, Any]


@dataclass(frozen=True)
class ParamSpec:
    """Description of one array of the model."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    """A logical axis per dimension; sharding/rules.py maps them to the mesh."""
    init: Literal["normal", "zeros", "ones"]
    std: float = 0.0
    rate: float = 1.0
    """Multiplier of the Adam update; 1 except for matrices under muP."""


def param_specs(model: Model) -> ParamSpecs:
    """Every parameter of the model as a nested dict of `ParamSpec`.

    Standard deviations follow GPT-2, as section 2.1 says: 0.02 for matrices and token embeddings,
    half of that for positions; residual projections are divided by the square root of the number
    of residual branches. Under muP those of matrices, and their rates, depend on the width.
    """
    n, d, f = model.n_layers, model.d_model, model.d_ff
    h, k = model.n_heads, model.d_head
    ratio = width_ratio(model)
    std = model.init_std / math.sqrt(ratio)
    residual_std = std / math.sqrt(2 * n)

    def norm(*lead: int) -> ParamSpecs:
        axes = (*("layers" for _ in lead), "embed")
        return {
            "gain": ParamSpec((*lead, d), axes, "ones"),
            "bias": ParamSpec((*lead, d), axes, "zeros"),
        }

    def linear(shape: tuple, axes: tuple, bias: tuple, bias_axes: tuple, std: float) -> ParamSpecs:
        return {
            "kernel": ParamSpec((n, *shape), ("layers", *axes), "normal", std, 1 / ratio),
            "bias": ParamSpec((n, *bias), ("layers", *bias_axes), "zeros"),
        }

    layers = {
        "norm_1": norm(n),
        # The head axis precedes the packed q, k, v, so that the kernel can be sharded by head.
        "qkv": linear(
            (d, h, 3, k), ("embed", "heads", None, None), (h, 3, k), ("heads", None, None), std
        ),
        "out": linear((h, k, d), ("heads", None, "embed"), (d,), ("embed",), residual_std),
        "norm_2": norm(n),
        "up": linear((d, f), ("embed", "mlp"), (f,), ("mlp",), std),
        "down": linear((f, d), ("mlp", "embed"), (d,), ("embed",), residual_std),
    }
    if model.lora_rank:
        kernels = {name: layers[name]["kernel"] for name in model.lora_matrices}
        layers["lora"] = {name: _factors(spec, model, name) for name, spec in kernels.items()}
    return {
        "token_embedding": ParamSpec(
            (model.padded_vocabulary, d), ("vocab", "embed"), "normal", model.init_std
        ),
        "position_embedding": ParamSpec(
            (model.context, d), (None, "embed"), "normal", model.init_std / 2
        ),
        "layers": layers,
        "final_norm": norm(),
    }


def _factors(kernel: ParamSpec, model: Model, name: str) -> ParamSpecs:
    """The LoRA factors of a kernel; their product is zero at initialisation (Hu et al. 2021).

    The rank is not sharded, so a device's shards multiply to its shard of the update. Under muP
    the first factor, which contracts the width, has the rate of its kernel; the second has rate 1.
    """
    rank, inputs = model.lora_rank, 3 if name == "out" else 2  # `out` contracts H and K.
    lead, axes = kernel.shape[:inputs], kernel.axes[:inputs]
    std = math.prod(lead[1:]) ** -0.5
    return {
        "a": ParamSpec((*lead, rank), (*axes, None), "normal", std, kernel.rate),
        "b": ParamSpec(
            (model.n_layers, rank, *kernel.shape[inputs:]),
            ("layers", None, *kernel.axes[inputs:]),
            "zeros",
        ),
    }


def spec_leaves(tree: ParamSpecs) -> Iterator[ParamSpec]:
    """The specs of a tree."""
    return (spec for _, spec in named_specs(tree))


def named_specs(tree: ParamSpecs, prefix: str = "") -> Iterator[tuple[str, ParamSpec]]:
    """The specs of a tree with their paths, such as `layers/qkv/kernel`."""
    for key, value in tree.items():
        if isinstance(value, ParamSpec):
            yield prefix + key, value
        else:
            yield from named_specs(value, f"{prefix}{key}/")


def count_params(model: Model) -> int:
    """Exact number of parameters, without the vocabulary's padding.

    >>> count_params(Model(n_layers=1, d_model=4, n_heads=2, d_head=2, vocabulary=10, context=8))
    324
    """
    padding = (model.padded_vocabulary - model.vocabulary) * model.d_model
    return sum(math.prod(spec.shape) for spec in spec_leaves(param_specs(model))) - padding


def flops_per_token(model: Model) -> int:
    """Training FLOPs per token: 6 per matrix element, plus unmasked attention.

    PaLM's MFU convention, but with causal instead of full attention: 12 FLOPs per visible key and
    head-width element, forward and backward.
    """
    return 3 * forward_flops_per_token(model) + 6 * model.vocabulary * model.d_model


def forward_flops_per_token(model: Model) -> int:
    """Forward FLOPs per token of a prefill of `context` tokens; logits of its last token only."""
    attention_width = model.n_heads * model.d_head
    matrices = model.n_layers * (
        4 * model.d_model * attention_width + 2 * model.d_model * model.d_ff
    )
    visible = sum(
        visible_pairs(model.context, None if model.is_dense(i) else model.band)
        for i in range(model.n_layers)
    )
    return 2 * matrices + 4 * attention_width * visible // model.context


def visible_pairs(context: int, band: int | None) -> int:
    """Number of unmasked (query, key) pairs in one window, dense or banded."""
    width = min(band or context, context)
    return context * width - width * (width - 1) // 2
