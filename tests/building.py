"""What tests build: randomised parameters, runs of them, and variants of an experiment."""

import dataclasses
import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from gpt3jax.checkpoint.checkpointer import Checkpointer
from gpt3jax.checkpoint.manifest import CheckpointManifest
from gpt3jax.config import Mesh
from gpt3jax.model.gpt3 import forward
from gpt3jax.model.param_specs import param_specs
from gpt3jax.run_dir import Run
from gpt3jax.serde import short_hash
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.train.loss import window_loss
from gpt3jax.train.optimizers import make_optimizer
from gpt3jax.train.run_setup import create_or_check, data_identity
from gpt3jax.train.state import TrainState, abstract_state


def randomised(model, seed=0):
    """Parameters in which nothing is zero or one, so that no bias or gain can hide.

    Drawn by numpy: a program that draws them takes two seconds to compile.
    """

    def drawn(path, spec):
        draw = np.random.default_rng((seed, zlib.crc32("/".join(path).encode())))
        scale = {"normal": spec.std, "zeros": 0.0, "ones": 0.0}[spec.init] + 0.1
        values = (spec.init == "ones") + scale * draw.standard_normal(spec.shape)
        return jnp.asarray(values, jnp.float32)

    return traverse_util.path_aware_map(drawn, param_specs(model))


def random_run(path, experiment, *, seed=0, mesh=None, step=5, dtype=jnp.float32):
    """A run with a checkpoint that nobody trained, of one device, or of all on the mesh."""
    run = Run(path)
    run.path.mkdir(exist_ok=True)
    identity = {**experiment.identity(), "data": data_identity(experiment)}
    create_or_check(run, experiment, identity)
    mesh = make_mesh(mesh, jax.devices()) if mesh else make_mesh(Mesh(data=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = jax.tree.map(
            lambda leaf, place: jax.device_put(leaf.astype(dtype), place.sharding),
            randomised(experiment.model, seed),
            abstract_state(experiment, mesh).params,
        )
        state = TrainState(params, make_optimizer(experiment).init(params))
        checkpoints = Checkpointer(run.checkpoints, 9)
        draft = CheckpointManifest(step, 8 * step, (), short_hash(identity), {"jax": "0"}, {})
        checkpoints.save(state, draft, lambda manifest: None)
        checkpoints.close()
    return run


@partial(jax.jit, static_argnums=2)
def logits_of(params, tokens, model):
    """The logits of the forward pass, padded vocabulary included."""
    return forward(params, tokens, model).logits


def loss_of(params, windows, model):
    """The loss alone, nats per learned token, without the other scalars."""
    return window_loss(params, windows, model)[0]


def changed(experiment, **groups):
    """An experiment with fields of its groups replaced: changed(e, train={"steps": 3})."""
    replaced = {
        name: dataclasses.replace(getattr(experiment, name), **fields)
        for name, fields in groups.items()
    }
    return dataclasses.replace(experiment, **replaced)
