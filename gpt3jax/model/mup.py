"""muP, under which the best learning rate does not depend on the width (arXiv 2203.03466).

Yang et al. 2022, Table 8, for Adam and a head tied to the embedding. With r = d_model / base
d_model (`Model.mup_base`):

    matrices of the layers     initial std / sqrt(r), Adam update / r
    logits                     / r
    attention scores           q k sqrt(base d_head) / d_head, not q k / sqrt(d_head)
    embeddings, biases, gains  unchanged; biases and gains are elementwise

At the base width this is bit-identical to the standard parameterisation (section 2.1). Weight decay
does not depend on the width: r divides only the Adam update. Importing this file does not import
jax.
"""

from __future__ import annotations

import math

from gpt3jax.config import Model


def width_ratio(model: Model) -> float:
    """d_model over the base's d_model; 1.0 in the standard parameterisation."""
    return model.d_model / model.mup_base[0] if model.mup_base else 1.0


def query_scale(model: Model) -> float:
    """Factor on the queries, in addition to the usual division by sqrt(d_head)."""
    return math.sqrt(model.mup_base[1] / model.d_head) if model.mup_base else 1.0
