"""The loop over tokens through XLA's compiler for GPUs, for cards that are not there (make gpu)."""

import dataclasses
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gpt3jax.config import Mesh
from gpt3jax.decoding import decode
from gpt3jax.decoding.decode import Sampling
from gpt3jax.model.init import init_params
from gpt3jax.plan import slices
from gpt3jax.plan.kernels import kernel_table
from gpt3jax.plan.topologies import GPU_OPTIONS, describe_devices
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.user_code import load_experiment

PROMPT, SLOTS = 16, 256


@pytest.mark.skipif(
    find_spec("jax_cuda13_plugin") is None,
    reason="NOT CHECKED: the GPU compiler is not installed. `make gpu` installs and runs it",
)
@pytest.mark.gpu_compiler
@pytest.mark.parametrize("weights", ["full", "bfloat16", "int8"])
def test_a_token_reads_the_weights_as_stored_and_the_cache_and_little_else(weights):
    """Two layers and the head of GPT-3 Small in bfloat16: one turn of the loop, in bytes."""
    small = load_experiment("experiments/gpt3_125m.py").model
    model = dataclasses.replace(small, n_layers=2, dtype="bfloat16")
    mesh = make_mesh(Mesh(data=1), describe_devices(slices.parse("h200:1")))
    everywhere = NamedSharding(mesh, PartitionSpec())

    def abstract(function, *arguments):
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
            jax.eval_shape(function, *arguments),
        )

    with jax.set_mesh(mesh):
        params = abstract(
            lambda: decode.decoding_params(init_params(jax.random.key(0), model), model, weights)
        )
        tokens, number = abstract(lambda: (jnp.zeros((1, PROMPT), int), jnp.int32(0)))
        _, cache = abstract(
            lambda params, tokens: decode.prefill(params, tokens, jnp.int32(1), model, SLOTS),
            params, tokens,
        )  # fmt: skip
        rows = abstract(lambda: decode.Writing(None, jnp.zeros(1, int), jnp.zeros(1, bool)))
        writing = dataclasses.replace(rows, cache=cache)
        write = jax.jit(decode.write, static_argnums=(6, 7), donate_argnums=1)
        numbers = [number] * 4
        lowered = write.lower(params, writing, *numbers, model, Sampling(0.0))
        text = lowered.compile(GPU_OPTIONS).as_text()
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((params, cache)))
    assert sum(kernel.bytes for kernel in kernel_table(text, None)) < 1.15 * needed
