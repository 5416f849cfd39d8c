"""The batch that reaches the devices, whichever processes they belong to."""

import jax
import numpy as np
import pytest
from building import changed
from jax.sharding import NamedSharding

from gpt3jax.config import Data, Mesh, Source
from gpt3jax.data import loader
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.sharding.rules import partition_spec
from gpt3jax.train.batches import BatchFeed, rows_on
from gpt3jax.train.schedules import Microbatches

MICROBATCH, COUNT = 16, 625


@pytest.fixture(scope="module")
def mixture(prepared):
    """Two sources in shares of 0.7 and 0.3, and the first ten thousand windows of their order."""
    data = Data((Source("a", str(prepared), 0.7), Source("b", str(prepared), 0.3)))
    order = loader.windows(data, seed=1, context=48)
    return order, np.stack([order[i] for i in range(MICROBATCH * COUNT)])


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 1, 8)])
@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.in_ci("*sizes2")
def test_each_process_reads_its_rows_and_all_together_the_same_batch(mixture, sizes, processes):
    order, expected = mixture
    mesh = make_mesh(Mesh(*sizes), jax.devices()[:8])
    sharding = NamedSharding(mesh, partition_spec((None, "batch", None)))
    found = np.zeros_like(expected).reshape(COUNT, MICROBATCH, -1)
    for devices in np.split(mesh.devices.reshape(-1), processes):
        rows = rows_on(devices, sharding, (1, MICROBATCH, 49))
        groups = sizes[0] * sizes[1]
        assert len(rows) == MICROBATCH // min(processes, groups), "no more than its own"
        spans = Microbatches([(MICROBATCH, COUNT + 99)], MICROBATCH, 0)
        read = loader.batches(order, spans, rows, 49)
        for step in range(COUNT):
            found[step, rows] = next(read)
        read.close()
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (4, 2, 1), (2, 2, 2)])
def test_a_batch_that_does_not_fill_its_last_microbatch_is_padded(experiment, sizes):
    """Of 11 windows after 5, in microbatches of 8, three are in the second; the rest is ~0."""
    eight = changed(experiment, train={"batch_tokens": 16 * 48, "microbatch": 8})
    mesh = make_mesh(Mesh(*sizes), jax.devices()[: int(np.prod(sizes))])
    feed = BatchFeed(eight, mesh, Microbatches([(11, 1), (16, 99)], 8, sequences=5))
    windows, _ = feed.take(2)
    following, _ = feed.take(2)
    feed.close()
    order = loader.windows(eight.data, eight.seed, 48)
    expected = np.stack([order[i] for i in range(5, 32)])
    np.testing.assert_array_equal(np.concatenate(np.asarray(windows))[:11], expected[:11])
    assert (np.concatenate(np.asarray(windows))[11:] == ~0).all()
    np.testing.assert_array_equal(np.concatenate(np.asarray(following)), expected[11:])
