"""The parameter arrays of a model: names, shapes, sizes and statistics of their values.

Legend: N layers (1 for arrays outside the layers), M values of an array, B histogram bins.
"""

from __future__ import annotations

import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from gpt3jax.config import Model
from gpt3jax.model.init import Params
from gpt3jax.model.param_specs import count_params, flops_per_token, named_specs, param_specs

BINS = 40
REACH = 4.0
"""Range of the histogram in standard deviations; values beyond are counted in the outer bins."""


def shape_of(model: Model) -> dict[str, Any]:
    """The hyperparameters and size of a model, for the page."""
    fields = ("n_layers", "d_model", "n_heads", "d_head", "vocabulary", "context", "band")
    return {name: getattr(model, name) for name in fields} | {
        "d_ff": model.d_ff,
        "parameters": count_params(model),
        "flops_per_token": flops_per_token(model),
        "dense": [model.is_dense(layer) for layer in range(model.n_layers)],
    }


def anatomy(model: Model, params: Params | None = None) -> dict[str, Any]:
    """The arrays of a model, in the order of `param_specs`; the vocabulary without its padding.

    `params` may have any sharding; they are not moved.

    Returns:
      `total`, the parameter count, and `arrays`. Each has a `name`, the `shape` and `count` of one
      layer, the number of `copies`, its `share` of all parameters, and its initialization (`init`,
      `std`); with values also `histogram` (int32 [N, B], from `-reach` to `reach` around the
      initial value), `mean` and `rms` [N].
    """
    total, arrays = count_params(model), []
    for name, spec in named_specs(param_specs(model)):
        is_stacked = name.startswith("layers/")
        shape = spec.shape[int(is_stacked) :]
        if name == "token_embedding":
            shape = (model.vocabulary, *shape[1:])
        copies, size = spec.shape[0] if is_stacked else 1, math.prod(shape)
        arrays.append({
            "name": name, "shape": list(shape), "copies": copies, "count": size,
            "share": size * copies / total, "init": spec.init, "std": spec.std,
        })  # fmt: skip
    if params is not None:
        flat = cast(dict[str, jax.Array], traverse_util.flatten_dict(params, sep="/"))
        # The slice drops the rows that pad the vocabulary, which are last.
        leaves = [
            flat[each["name"]].reshape(each["copies"], -1)[:, : each["count"]] for each in arrays
        ]
        for each, values in zip(arrays, _values(leaves, arrays), strict=True):
            each.update(values)
    return {"total": total, "arrays": arrays}


def _values(leaves: list[jax.Array], arrays: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean, RMS and histogram of each array, per layer."""
    starts = [float(each["init"] == "ones") for each in arrays]
    moments = [[np.asarray(x, np.float64) for x in each] for each in _moments(leaves)]
    results, edges = [], []
    for each, start, (mean_N, square_N) in zip(arrays, starts, moments, strict=True):
        spread = float(np.sqrt((square_N - 2 * start * mean_N + start**2).clip(0).max()))
        reach = REACH * max(each["std"], spread) or 1.0
        edges.append(np.linspace(start - reach, start + reach, BINS + 1, dtype=np.float32)[1:-1])
        rms_N = np.sqrt(square_N)
        results.append(
            {"reach": reach, "mean": mean_N.astype(np.float32), "rms": rms_N.astype(np.float32)}
        )
    for each, values, below in zip(arrays, results, _below(leaves, edges), strict=True):
        ends = [np.full((1, each["copies"]), n) for n in (0, each["count"])]
        counts = np.concatenate([ends[0], np.asarray(below), ends[1]])
        values["histogram"] = np.diff(counts, axis=0).T.astype(np.int32)
    return results


@jax.jit
def _moments(leaves):
    return [(x.mean(-1), jnp.square(x).mean(-1)) for x in leaves]


@jax.jit
def _below(leaves, edges):
    """The number of values below each edge, [B, N]; sums work with any sharding."""
    return [
        jax.lax.map(lambda edge, x_NM=x_NM: (x_NM < edge).sum(-1, dtype=jnp.int32), edges_B)
        for x_NM, edges_B in zip(leaves, edges, strict=True)
    ]


GPT3 = Model(n_layers=96, d_model=12288, n_heads=96, d_head=128)
"""GPT-3 175B (Table 2.1), for comparison."""
