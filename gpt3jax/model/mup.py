"""muP: what follows the width, so that the best learning rate does not (arXiv 2203.03466).

Yang et al. 2022, Table 8, for Adam and a head tied to the embedding. With r = d_model / that of
the base, `Model.mup_base`:

    matrices of the layers     initial std / sqrt(r), Adam's part of an update / r
    logits                     / r
    attention scores           q k sqrt(base d_head) / d_head, not q k / sqrt(d_head)
    embeddings, biases, gains  as ever; a bias and a gain act on each unit alone

At the base's widths it is the standard parameterisation (section 2.1), to the bit. Weight decay
stays as strong at each width: what r divides is Adam's part. Importing this file does not import
jax.
"""

from __future__ import annotations

import math

from gpt3jax.config import Model


def width_ratio(model: Model) -> float:
    """How many times as wide as its base; 1.0 in the standard parameterisation."""
    return model.d_model / model.mup_base[0] if model.mup_base else 1.0


def query_scale(model: Model) -> float:
    """What queries are multiplied by, before scores are divided by sqrt(d_head) as ever."""
    return math.sqrt(model.mup_base[1] / model.d_head) if model.mup_base else 1.0
