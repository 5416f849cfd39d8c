"""Adam with clipping and decoupled weight decay, as Appendix B has it, from optax's parts."""

from __future__ import annotations

import optax

from gpt3jax.config import Optimizer
from gpt3jax.model.params import decayed


def make_optimizer(config: Optimizer) -> optax.GradientTransformation:
    """Gradients to an update of unit learning rate; the step multiplies by -learning_rate."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.b1, config.b2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
    )
