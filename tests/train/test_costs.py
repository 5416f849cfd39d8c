"""What compiled steps cost, in counts: a slower step fails here, however loaded the machine is.

XLA's own count of operations and of bytes that they read and write. Where a change or
another jax makes them fewer, write the new numbers here; where more, say why.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt3jax.config import Mesh
from gpt3jax.decoding import decode
from gpt3jax.decoding.decode import Sampling
from gpt3jax.model.init import init_params
from gpt3jax.model.param_specs import flops_per_token
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.train.state import abstract_state
from gpt3jax.train.step import compile_train_step
from gpt3jax.user_code import load_experiment

SLACK = 1.01


def compiled_step(file, rows, **changes):
    """The model, and its train step compiled for one CPU."""
    experiment = load_experiment(f"experiments/{file}.py")
    model = dataclasses.replace(experiment.model, dtype="float32", **changes)
    sizes = {"microbatch": rows, "batch_tokens": rows * model.context}
    train = dataclasses.replace(experiment.train, **sizes)
    experiment = dataclasses.replace(experiment, model=model, train=train)
    mesh = make_mesh(Mesh(data=1), jax.devices()[:1])
    windows = jax.ShapeDtypeStruct((1, rows, model.context + 1), jnp.int32)
    with jax.set_mesh(mesh):
        step = compile_train_step(experiment, mesh)
        state = abstract_state(experiment, mesh)
        return model, step.lower(state, windows, jnp.int32(1), jnp.float32(0)).compile()


@pytest.mark.parametrize(
    ("file", "rows", "changes", "over_model", "gigabytes", "megabytes_kept"),
    [
        ("tiny", 8, {}, 1.1015, 1.564, 206),
        # Two of GPT-3 Small's layers, and its head.
        (
            "gpt3_125m",
            2,
            {"context": 512, "n_layers": 2, "scan_layers": False},
            1.0141,
            11.02,
            1219,
        ),
    ],
)
def test_a_train_step(file, rows, changes, over_model, gigabytes, megabytes_kept):
    """FLOPs over those of the model (6 N and attention), bytes, and memory beside the state."""
    model, step = compiled_step(file, rows, **changes)
    costs, tokens = step.cost_analysis(), rows * model.context
    assert costs["flops"] / (flops_per_token(model) * tokens) < over_model * SLACK
    assert costs["bytes accessed"] / 1e9 < gigabytes * SLACK
    assert step.memory_analysis().temp_size_in_bytes / 1e6 < megabytes_kept * SLACK


def test_a_layer_more_costs_as_much_as_the_one_before():
    """And a banded one less than a dense one, by what the band hides."""

    def costs(n_layers, dense_every):
        changes = {"n_layers": n_layers, "dense_every": dense_every, "band": 32}
        found = compiled_step("tiny", 1, **changes)[1].cost_analysis()
        return np.array([found["flops"], found["bytes accessed"]])

    one, two, three, four = (costs(n, 1) for n in (1, 2, 3, 4))
    np.testing.assert_allclose(four - three, three - two, rtol=0.02)
    banded = costs(2, 2)
    assert (banded < two).all() and (banded > one).all()


@pytest.mark.parametrize(
    ("weights", "megabytes"), [("full", 4.63), ("bfloat16", 3.06), ("int8", 1.48)]
)
@pytest.mark.in_ci("int8*")
def test_a_token_written(weights, megabytes):
    """Bytes of a turn of the loop: the matrices, 0.1 MB of cache, and what is between.

    Nothing is made before the loop and kept for it, such as a float32 copy of the matrices.
    """
    model = dataclasses.replace(load_experiment("experiments/tiny.py").model, dtype="float32")
    params = decode.decoding_params(init_params(jax.random.key(0), model), model, weights)
    _, cache = decode.prefill(params, jnp.zeros((1, 16), jnp.int32), jnp.int32(16), model, 32)
    writing = decode.Writing(cache, jnp.zeros(1, jnp.int32), jnp.zeros(1, bool))
    options = {"donate_argnums": 1, "compiler_options": decode.CPU_OPTIONS}
    write = jax.jit(decode.write, static_argnums=(6, 7), **options)
    compiled = write.lower(params, writing, 0, 17, 9, -1, model, Sampling(0.0)).compile()
    assert compiled.cost_analysis()["bytes accessed"] / 1e6 < megabytes * SLACK
    assert compiled.memory_analysis().temp_size_in_bytes / 1e6 < 0.1
