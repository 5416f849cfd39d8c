"""A run goes on over other devices and processes: the same values, the same windows in order."""

import dataclasses
import subprocess
import sys
from unittest import mock

import jax
import numpy as np
import pytest
from building import changed
from kills import ENVIRONMENT, ROOT, make_data, outcome, whole

from gpt3jax.config import Mesh
from gpt3jax.data import loader
from gpt3jax.run_dir import Run
from gpt3jax.train import stepper
from gpt3jax.train.monitor import event_log
from gpt3jax.train.train import train


@pytest.fixture
def seen(monkeypatch):
    """By step, the windows that the devices were given."""
    batches, read = {}, stepper.Stepper.next_batch

    def noted(self):
        batch = read(self)
        batches[batch.after.step] = np.asarray(batch.windows)[: batch.count]
        return batch

    monkeypatch.setattr(stepper.Stepper, "next_batch", noted)
    return batches


@pytest.mark.long
def test_a_run_goes_on_over_1_2_4_8_3_and_1_devices(experiment, tmp_path, seen):
    """Batches of 24 windows, which all of these divide; the last leg is a mesh of all axes."""
    base = changed(
        experiment, train={"batch_tokens": 24 * 48},
        # Low enough that training is not chaotic: it would magnify the last bits.
        schedule={"peak_learning_rate": 1e-3},
    )  # fmt: skip
    base = dataclasses.replace(base, mesh=Mesh(data=-1))
    devices = jax.devices()
    with mock.patch.object(jax, "devices", lambda *_: devices[:1]):
        train(changed(base, train={"steps": 14}), tmp_path / "one")
    alone = dict(seen)
    seen.clear()
    legs = [(1, {}), (2, {}), (4, {"fsdp": 4}), (8, {}), (3, {}), (1, {}),
            (8, {"fsdp": 2, "tensor": 2})]  # fmt: skip
    for number, (count, axes) in enumerate(legs, 1):
        sizes = {"data": -1, **axes}
        leg = changed(dataclasses.replace(base, mesh=Mesh(**sizes)), train={"steps": 2 * number})
        with mock.patch.object(jax, "devices", lambda *_, count=count: devices[:count]):
            # What is restored is compared with the hashes of its leaves, bit for bit.
            assert train(leg, tmp_path / "many").steps_taken == 2
    for step, windows in alone.items():
        np.testing.assert_array_equal(seen[step], windows)
    order = loader.windows(base.data, base.seed, 48)
    np.testing.assert_array_equal(seen[14].reshape(24, 49)[5], order[13 * 24 + 5])
    one, many = (
        {r["step"]: r["loss"] for r in Run(tmp_path / name).metrics() if "loss" in r}
        for name in ("one", "many")
    )
    np.testing.assert_allclose(list(many.values()), list(one.values()), rtol=1e-6)
    begun = [e["mesh"] for e in event_log.read(tmp_path / "many" / "ledger.jsonl") if "mesh" in e]
    assert [int(np.prod(list(mesh.values()))) for mesh in begun] == [1, 2, 4, 8, 3, 1, 8]


@pytest.mark.long
def test_a_run_goes_on_over_1_2_and_1_processes(tmp_path):
    """Each with two devices in all, so that even the bits are the same."""
    file = make_data(tmp_path)

    def launch(run, processes, devices, steps):
        done = subprocess.run(
            [sys.executable, str(ROOT / "launch" / "local.py"), "--processes", str(processes),
             "--devices", str(devices), str(file), "--run", str(run), "--mesh.data", "-1",
             "--train.steps", str(steps)],
            env=ENVIRONMENT, capture_output=True, text=True, timeout=200,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    launch(tmp_path / "one", 1, 2, 12)
    for processes, steps in ((1, 4), (2, 8), (1, 12)):
        launch(tmp_path / "many", processes, 2 // processes, steps)
    for name in ("one", "many"):
        (tmp_path / f"{name}.seen").touch()
    one, many = outcome(tmp_path / "one"), outcome(tmp_path / "many")
    assert whole(tmp_path / "many")[-1] == 12
    for step, values in one["records"].items():
        found = many["records"][step]
        for a, b in zip(values, found, strict=True):
            assert a == b or a is None or b is None or abs(a - b) <= 1e-6 * abs(a), step
