"""Runs with a checkpoint that nobody trained: everything in them is random."""

import pytest
from building import changed, random_run


@pytest.fixture
def dense(experiment):
    """The experiment, every layer of which sees the whole past."""
    return changed(experiment, model={"dense_every": 1})


@pytest.fixture
def make_run(tmp_path):
    """(experiment, name="run", seed=0, mesh=one device, step=5, dtype=float32) -> a run."""
    return lambda experiment, name="run", **how: random_run(tmp_path / name, experiment, **how)
