"""Each check of the machine is seen to fail, where it can be by a real fault."""

import importlib.metadata
import os
import resource
import socket
import sys

import jax
import numpy as np
import pytest

from gpt3jax.doctor import machine
from gpt3jax.doctor.diagnose import attempt


def found(check):
    """(status, finding, cure), as a command would print them."""
    made = attempt(check)
    assert made.name == check.__name__.replace("_", " ")
    assert (made.status == "ok") == (made.cure == "")
    assert len(made.finding) + len(made.cure) <= 174
    return made.status, made.finding, made.cure


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a package's metadata where Python finds it first."""

    def put(name, version, python=">=3.11"):
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Python: {python}\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))

    return put


@pytest.mark.parametrize("check", [*machine.CHECKS, machine.products])
def test_each_check_passes_here(check):
    if check is machine.hosts and any(name in os.environ for name in machine.MANAGED):
        pytest.skip("on a cluster")
    assert found(check)[0] in ("ok", "warning")


def test_an_old_python_is_rejected(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    status, finding, cure = found(machine.python)
    assert (status, finding) == ("failure", "3.10.4 is too old: jax needs 3.11")
    assert "python3.11 -m venv" in cure


def test_python_3_11_gets_a_note_about_the_last_jax(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 11, 9))
    assert "last jax for it is 0.10.2" in found(machine.python)[1]
    monkeypatch.setattr(sys, "version_info", (3, 12, 1))
    assert found(machine.python) == ("ok", "3.12.1", "")


@pytest.mark.parametrize("version", ["0.12.7", "0.13.0"])
def test_a_package_outside_its_range_is_reported_with_the_range(install, version):
    install("flax", version)
    status, finding, cure = found(machine.packages)
    assert status == "failure" and f"flax {version} is outside" in finding
    assert cure == "pip install 'flax<0.13,>=0.12.8'"


def test_a_package_for_another_python_is_rejected(install):
    install("rich", "15.0.0", python=">=3.99")
    status, finding, _ = found(machine.packages)
    assert status == "failure" and "rich 15.0.0 is for Python >=3.99" in finding


def test_missing_packages_are_listed(tmp_path, monkeypatch):
    text = "[options]\ninstall_requires =\n    jax>=0.10\n    no-such-a>=1\n    no-such-b>=1,<2\n"
    monkeypatch.setattr(machine, "SETUP", tmp_path / "setup.cfg")
    machine.SETUP.write_text(text)
    status, finding, cure = found(machine.packages)
    assert (status, finding) == ("failure", "no-such-a is missing; no-such-b is missing")
    assert cure == f"pip install -e '{machine.PACKAGE.parent}'", "both at once"


def test_outside_a_checkout_installed_metadata_has_the_requirements(tmp_path, monkeypatch):
    listed = ["jax<0.13,>=0.10.2", 'ruff==0.17.6; extra == "dev"']
    monkeypatch.setattr(machine, "SETUP", tmp_path / "setup.cfg")
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: listed)
    assert machine.requirements() == ["jax<0.13,>=0.10.2"]
    assert found(machine.packages)[1].startswith("1 installed")


def test_different_versions_of_jax_and_jaxlib_are_rejected(install):
    version = importlib.metadata.version("jax")
    install("jaxlib", "0.9.0")
    status, finding, cure = found(machine.pairings)
    assert status == "failure" and f"jax {version}, jaxlib 0.9.0" in finding
    assert cure == f"pip install jax=={version} jaxlib=={version}"


def test_a_cuda_plugin_of_another_version_is_rejected(install):
    version = importlib.metadata.version("jaxlib")
    install("jax-cuda13-plugin", "0.9.0")
    install("jax-cuda13-pjrt", version)
    status, finding, cure = found(machine.pairings)
    assert status == "failure" and "jax-cuda13-plugin 0.9.0" in finding
    assert cure == f"pip install jax-cuda13-plugin=={version}"


def test_matching_plugins_are_listed(install):
    version = importlib.metadata.version("jaxlib")
    install("jax-cuda13-plugin", version)
    install("libtpu", "0.0.1")
    status, finding, _ = found(machine.pairings)
    assert status == "ok" and finding.endswith(f"jax-cuda13-plugin {version}, libtpu 0.0.1")


def nameless(*_):
    raise socket.gaierror(-2, "Name or service not known")


def test_a_host_whose_name_does_not_resolve_matters_on_a_cluster(monkeypatch):
    for name in machine.MANAGED:
        monkeypatch.delenv(name, raising=False)
    assert found(machine.hosts)[1].endswith("one process alone")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[1-2]")
    assert "SLURM_STEP_NODELIST set" in found(machine.hosts)[1]
    monkeypatch.setattr(socket, "getaddrinfo", nameless)
    status, finding, cure = found(machine.hosts)
    assert status == "failure" and "does not resolve (Name or service not known)" in finding
    assert cure.endswith("sudo tee -a /etc/hosts")
    monkeypatch.delenv("SLURM_STEP_NODELIST")
    assert found(machine.hosts)[0] == "warning"


def test_several_processes_are_counted(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(jax, "process_index", lambda: 2)
    assert found(machine.hosts)[1].endswith("is process 2 of 4")


@pytest.fixture
def overlooked(tmp_path, monkeypatch):
    """A device file that jax has no driver for."""
    file = tmp_path / "nvidia0"
    file.touch()
    monkeypatch.setattr(machine, "ACCELERATORS", {str(file): "cuda"})
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    return str(file)


def test_an_accelerator_not_used_by_jax_is_a_warning(overlooked, monkeypatch):
    monkeypatch.setattr(machine, "_version", lambda name: None)
    status, finding, cure = found(machine.devices)
    assert status == "warning" and finding.endswith("jax sees only 8 x cpu (cpu)")
    assert cure == f"pip install -e '{machine.PACKAGE.parent}[cuda]'"
    monkeypatch.setattr(machine, "SETUP", machine.SETUP.with_name("none"))
    assert found(machine.devices)[2] == "pip install 'gpt3jax[cuda]'"


def test_an_unused_accelerator_with_a_plugin_gets_another_remedy(overlooked, install, monkeypatch):
    install("jax-cuda13-plugin", "1.0")
    assert found(machine.devices)[2].startswith("JAX_PLATFORMS=cuda python -c")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert found(machine.devices)[2] == "unset JAX_PLATFORMS"


def test_tpu_environment_variables_indicate_a_tpu(monkeypatch):
    monkeypatch.setattr(machine, "ACCELERATORS", {})
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    status, finding, _ = found(machine.devices)
    assert status == "warning" and finding.startswith("TPU_ACCELERATOR_TYPE exists")


def test_memory_is_shown_if_the_device_reports_it(monkeypatch):
    class Device:
        device_kind, platform = "NVIDIA H100 80GB HBM3", "gpu"

        def memory_stats(self):
            return {"bytes_limit": 60 * 2**30}

    monkeypatch.setattr(jax, "devices", lambda: [Device()] * 2)
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    said = (
        "2 x NVIDIA H100 80GB HBM3 (gpu), 60.0 GiB usable each "
        "(XLA_PYTHON_CLIENT_MEM_FRACTION is 0.92)"
    )
    assert found(machine.devices) == ("ok", said, "")


@pytest.mark.parametrize("fault", ["wrong", "changing"])
def test_a_device_with_wrong_products_is_reported(monkeypatch, fault):
    right, calls = jax.numpy.matmul, []

    def matmul(a, b):
        calls.append(1)
        bad = fault == "wrong" or len(calls) % 2
        # The smallest fault there is: the last bit of one number, on the third device.
        out = np.array(right(a, b))
        if bad and a.devices() == {jax.devices()[2]}:
            out.view(np.uint32)[3, 5] ^= 1
        return out

    monkeypatch.setattr(jax.numpy, "matmul", matmul)
    status, finding, cure = found(machine.products)
    assert status == "failure" and finding.startswith(f"{jax.devices()[2]}: ")
    assert ("1 of 65,536 numbers" if fault == "wrong" else "two results") in finding
    assert "replaced" in cure


@pytest.mark.parametrize(("soft", "status"), [(100, "failure"), (256, "warning"), (1024, "ok")])
def test_a_low_limit_on_open_files_is_reported(soft, status):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
        made = found(machine.open_files)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert made[0] == status
    assert made[2] == ("" if status == "ok" else "ulimit -n 4096")
