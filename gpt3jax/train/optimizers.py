"""Adam with clipping and decoupled weight decay, as Appendix B has it, from optax's parts."""

from __future__ import annotations

import optax
from flax.traverse_util import path_aware_map

from gpt3jax.config import Experiment, Model
from gpt3jax.model.init import decayed
from gpt3jax.model.param_specs import named_specs, param_specs


def make_optimizer(experiment: Experiment) -> optax.GradientTransformation:
    """Gradients to an update of unit learning rate; the step multiplies by -learning_rate."""
    config, model = experiment.optimizer, experiment.model
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.b1, config.b2, config.epsilon),
        *([] if model.mup_base is None else [_at_rates(model)]),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
    )


def _at_rates(model: Model) -> optax.GradientTransformation:
    """Each leaf times its rate in the table; what is trained may be less than all leaves."""
    rates = {path: spec.rate for path, spec in named_specs(param_specs(model))}

    def scaled(updates, params):
        return path_aware_map(lambda path, u: u * rates["/".join(path)], updates)

    return optax.stateless(scaled)
