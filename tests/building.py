"""What tests build: randomised parameters, and variants of an experiment."""

import dataclasses
import zlib

import jax
from flax import traverse_util

from gpt3jax.model import params as model_params


def randomised(model, seed=0):
    """Parameters in which nothing is zero or one, so that no bias or gain can hide."""

    def noisy(path, leaf):
        key = jax.random.fold_in(jax.random.key(seed + 1), zlib.crc32("/".join(path).encode()))
        return leaf + 0.1 * jax.random.normal(key, leaf.shape)

    drawn = model_params.init(jax.random.key(seed), model)
    return traverse_util.path_aware_map(noisy, drawn)


def changed(experiment, **groups):
    """An experiment with fields of its groups replaced: changed(e, train={"steps": 3})."""
    replaced = {
        name: dataclasses.replace(getattr(experiment, name), **fields)
        for name, fields in groups.items()
    }
    return dataclasses.replace(experiment, **replaced)
