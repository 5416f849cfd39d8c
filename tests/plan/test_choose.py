"""The mesh of a run: chosen where it is left open, refused with the nearest where it cannot be."""

import dataclasses

import pytest

from gpt3jax.config import Mesh
from gpt3jax.errors import ConfigError
from gpt3jax.plan.choose import choose, mesh_for
from gpt3jax.run_dir import Run
from gpt3jax.sharding.legal_meshes import check_fits
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.train.monitor import event_log
from gpt3jax.train.train import train
from gpt3jax.user_code import load_experiment

AUTO = Mesh("auto", "auto", "auto")


def of_size(size, **changes):
    return dataclasses.replace(load_experiment(f"experiments/gpt3_{size}.py"), **changes)


@pytest.mark.parametrize(
    ("size", "devices", "kind"),
    [
        ("125m", 8, "TPU v5 lite"),
        ("13b", 256, "TPU v5"),
        ("175b", 1024, "TPU v5"),
        ("6b7", 64, "NVIDIA H100 80GB HBM3"),
    ],
)
def test_an_auto_mesh_is_legal_and_explained(size, devices, kind):
    experiment = of_size(size, mesh=AUTO)
    mesh, why = choose(experiment, devices, kind)
    assert mesh.data * mesh.fsdp * mesh.tensor == devices
    check_fits(experiment, mesh.data, mesh.fsdp, mesh.tensor)
    assert f"fsdp {mesh.fsdp}" in why and "fastest by estimate" in why


def test_only_auto_axes_are_chosen():
    experiment = of_size("13b", mesh=Mesh("auto", "auto", 4))
    assert choose(experiment, 256, "TPU v5")[0].tensor == 4
    given = Mesh(1, -1, 8)
    assert choose(dataclasses.replace(experiment, mesh=given), 256, "TPU v5")[0] == given


def test_slices_lie_along_data():
    mesh, _ = choose(of_size("6b7", mesh=AUTO), 64, "TPU v5 lite", slices=2)
    assert mesh.data % 2 == 0


def test_a_model_that_fits_no_mesh_is_rejected():
    with pytest.raises(ConfigError, match="does not fit"):
        choose(of_size("175b", mesh=AUTO), 16, "TPU v5 lite")


def test_an_illegal_mesh_is_rejected_with_the_closest_legal_ones():
    with pytest.raises(ConfigError) as refused:
        check_fits(of_size("125m"), 1, 1, 8)
    words = str(refused.value)
    assert "--model.n-heads is 12, which tensor = 8 does not divide" in words
    assert words.count("--mesh.tensor") == 3
    assert "--mesh.data 1 --mesh.fsdp 2 --mesh.tensor 4" in words


def test_training_uses_the_chosen_mesh_and_records_the_reason(experiment, tmp_path, capsys):
    experiment = dataclasses.replace(
        experiment, mesh=AUTO, train=dataclasses.replace(experiment.train, steps=1)
    )
    mesh, why = mesh_for(experiment)
    train(experiment, tmp_path, mesh=mesh, why=why)
    start = event_log.read(Run(tmp_path).ledger_file)[0]
    assert start["mesh"]["data"] * start["mesh"]["fsdp"] * start["mesh"]["tensor"] == 8
    assert "the fastest by estimate" in start["why"]
    assert start["why"] in " ".join(capsys.readouterr().out.split())


def test_an_auto_axis_is_refused_where_nothing_chooses_it():
    with pytest.raises(ConfigError, match="--mesh.fsdp is auto, which only training"):
        make_mesh(Mesh(1, "auto", 1))


@pytest.mark.parametrize("sizes", [(-1, "auto", 1), (0, 1, 1), (-1, -1, 1), (-2, 1, 1)])
def test_contradictory_meshes_are_rejected(sizes):
    with pytest.raises(ConfigError, match="mesh"):
        Mesh(*sizes)
