"""Weights gathered in two stages: who belongs to which, and the same step as in one."""

import itertools
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gpt3jax.config import Mesh
from gpt3jax.sharding.collectives import all_gather_params, shard_map
from gpt3jax.sharding.mesh import first_stage_size, make_mesh

WEIGHTS = {"kernel": SimpleNamespace(axes=("heads", "embed"))}


def torus(*sizes, platform="tpu"):
    """A mesh whose `fsdp` goes through all chips of a torus, as JAX arranges them."""
    devices = [
        SimpleNamespace(platform=platform, coords=list(place))
        for place in itertools.product(*map(range, sizes))
    ]
    return SimpleNamespace(devices=np.array(devices).reshape(1, -1, 1))


@pytest.mark.parametrize(
    ("sizes", "near"),
    [
        ((4, 4, 4), 4),
        ((2, 4, 4), 4),
        ((4, 4, 8), 8),
        ((4, 4, 1), 1),
        ((1, 4, 4), 1),
        ((8, 1, 1), 1),
    ],
)
def test_only_three_axes_of_a_torus_are_gathered_in_two_stages(sizes, near):
    assert first_stage_size(torus(*sizes)) == near
    assert first_stage_size(torus(*sizes, platform="cpu")) == 1


@pytest.mark.parametrize("near", [1, 2, 4])
def test_stages_join_the_same_rows_and_sum_the_same_gradient(near):
    mesh = make_mesh(Mesh(1, 8, 1), jax.devices()[:8])
    w = jax.random.normal(jax.random.key(0), (3, 16))
    weight_of_device = jax.random.normal(jax.random.key(1), (8, 3, 16))

    def here(part, own):
        def product(part):
            return (all_gather_params({"kernel": part}, WEIGHTS)["kernel"] * own[0]).sum()

        whole = all_gather_params({"kernel": part}, WEIGHTS)["kernel"]
        return whole, jax.grad(product)(part)

    split, spread = PartitionSpec(None, "fsdp"), PartitionSpec("fsdp")
    with jax.set_mesh(mesh):
        run = jax.jit(shard_map(here, (split, spread), (PartitionSpec(), split), near))
        whole, gradient = run(w, weight_of_device)
        text = run.lower(w, weight_of_device).compile().as_text()
    np.testing.assert_array_equal(whole, w)
    np.testing.assert_allclose(gradient, weight_of_device.sum(0), rtol=1e-5, atol=1e-6)
    rows = r"all-gather\(.*replica_groups=\{\{([\d,]*)\}"
    groups = {len(found.split(",")) for found in re.findall(rows, text)}
    assert groups == ({8} if near == 1 else {near, 8 // near})
