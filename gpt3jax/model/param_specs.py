"""The one table of parameters: shape, logical axes and initialiser of each.

Initialisation, sharding, counting, planning, restore and export all derive
from `param_specs`. Layers are stacked on a leading axis, so the tree has the same
few leaves for 12 layers or 96. Importing this file does not import jax.

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

LOGIT_ROWS = 2048
"""At most this many rows of logits exist at a time, over all devices along `tensor`."""

ParamSpecs = dict[str, Any]


@dataclass(frozen=True)
class ParamSpec:
    """One array of the model, before it exists."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    """A logical axis per dimension; sharding/rules.py maps them to the mesh."""
    init: Literal["normal", "zeros", "ones"]
    std: float = 0.0
    rate: float = 1.0
    """What Adam's part of its updates is multiplied by; 1 but of matrices under muP."""


def param_specs(model: Model) -> ParamSpecs:
    """Every parameter of the model as a nested dict of `ParamSpec`.

    Standard deviations follow GPT-2, which section 2.1 takes over: 0.02 for
    matrices and token embeddings, half of it for positions, and the residual
    projections divided by the square root of the number of residual branches.
    Under muP those of matrices, and the rates at which they learn, follow the width.
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
        # Heads lead the packed q, k, v, so that a mesh can split them by head.
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
    """Two factors whose product has the kernel's shape; at first it is zero (Hu et al. 2021).

    The rank is not split: a device's parts multiply to its part of the change. Under muP the
    first factor, which sums over the width, learns as its kernel does, and the second as a bias.
    """
    rank, inputs = model.lora_rank, 3 if name == "out" else 2  # Of `out`, heads and their width.
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
    """The entries of a table."""
    return (spec for _, spec in named_specs(tree))


def named_specs(tree: ParamSpecs, prefix: str = "") -> Iterator[tuple[str, ParamSpec]]:
    """The entries of a table with their paths, as `layers/qkv/kernel`."""
    for key, value in tree.items():
        if isinstance(value, ParamSpec):
            yield prefix + key, value
        else:
            yield from named_specs(value, f"{prefix}{key}/")


def count_params(model: Model) -> int:
    """Exact number of parameters; padding of the vocabulary is not counted.

    >>> count(Model(n_layers=1, d_model=4, n_heads=2, d_head=2, vocabulary=10, context=8))
    324
    """
    padding = (model.padded_vocabulary - model.vocabulary) * model.d_model
    return sum(math.prod(spec.shape) for spec in spec_leaves(param_specs(model))) - padding


def flops_per_token(model: Model) -> int:
    """Training FLOPs per token: 6 per matrix element, plus the attention that the masks leave.

    The convention of PaLM's MFU with causal (not full) attention: 12 FLOPs per
    visible key and head-width element, forward and backward.
    """
    return 3 * forward_flops_per_token(model) + 6 * model.vocabulary * model.d_model


def forward_flops_per_token(model: Model) -> int:
    """FLOPs per token to read a whole context, forward alone; logits are of its last token only."""
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
    """(query, key) pairs that a causal mask, or a band of it, leaves in one window."""
    width = min(band or context, context)
    return context * width - width * (width - 1) // 2
