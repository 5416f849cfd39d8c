"""The checks of `doctor` that concern the machine and its packages, not an experiment."""

from __future__ import annotations

import configparser
import contextlib
import importlib.metadata
import os
import re
import resource
import socket
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from gpt3jax.runtime import compilation_cache
from gpt3jax.runtime.chips import GiB
from gpt3jax.runtime.memory import FRACTION
from gpt3jax.sharding.distributed import MANAGED

PACKAGE = Path(__file__).parents[1]
SETUP = PACKAGE.parent / "setup.cfg"
OLDEST_PYTHON = (3, 11)
ACCELERATORS = {"/dev/nvidia0": "cuda", "/dev/accel0": "tpu", "/dev/vfio/0": "tpu"}
"""Device files, and the extra that installs the JAX plugin for them."""
TPU_VARIABLES = ("TPU_ACCELERATOR_TYPE", "TPU_WORKER_HOSTNAMES", "TPU_NAME")
OPEN_FILES, FEWEST_OPEN_FILES = 1024, 128
"""Limits below which a large run may fail, and any run would; the smallest run needs 53."""


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    """That of the function, which `attempt` fills in."""
    status: Literal["ok", "warning", "failure"]
    finding: str
    cure: str = ""
    """Remedy for the user; empty if the status is ok."""


ok, warning, failure = (partial(Check, "", status) for status in ("ok", "warning", "failure"))


def python() -> Check:
    """Checks that this Python is recent enough for jax."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        cure = f"python{oldest} -m venv .venv, or make PYTHON=python{oldest}"
        return failure(f"{version} is too old: jax needs {oldest}", cure)
    last = "; the last jax for it is 0.10.2" if sys.version_info[:2] == (3, 11) else ""
    return ok(f"{version}{last}")


def packages() -> Check:
    """Checks that each required package is installed in a version allowed by setup.cfg."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    required = [Requirement(line) for line in requirements()]
    version = ".".join(map(str, sys.version_info[:3]))
    problems = {}
    for each in required:
        installed = _version(each.name)
        if installed is None:
            problems[f"{each.name} is missing"] = each
        elif not each.specifier.contains(installed, prereleases=True):
            problems[f"{each.name} {installed} is outside {each.specifier}"] = each
        else:
            pythons = importlib.metadata.metadata(each.name).json.get("requires_python", "")
            if not SpecifierSet(str(pythons)).contains(version, prereleases=True):
                problems[f"{each.name} {installed} is for Python {pythons}, not {version}"] = each
    if not problems:
        return ok(f"{len(required)} installed, each within its range")
    one = f"pip install '{next(iter(problems.values()))}'"
    cure = one if len(problems) == 1 else _install()
    return failure("; ".join(problems), cure)


def requirements() -> list[str]:
    """`install_requires` of the checkout, or of the installed package."""
    if SETUP.exists():
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(SETUP)
        return list(filter(None, parser["options"]["install_requires"].split("\n")))
    listed = importlib.metadata.requires("gpt3jax") or []
    return [line for line in listed if "extra ==" not in line]


def pairings() -> Check:
    """Checks that the versions of jax, jaxlib and the CUDA plugins agree."""
    jax, jaxlib = _version("jax"), _version("jaxlib")
    if jax is None or jax != jaxlib:
        cure = f"pip install jax=={jax} jaxlib=={jax}" if jax else _install()
        versions = f"jax {jax or 'missing'}, jaxlib {jaxlib or 'missing'}"
        return failure(f"{versions}: the versions must be equal", cure)
    names = {
        re.sub(r"[-_.]+", "-", each.name or "").lower()
        for each in importlib.metadata.distributions()
    }
    cuda = sorted(name for name in names if re.fullmatch(r"jax-cuda\d+-(plugin|pjrt)", name))
    mismatched = [name for name in cuda if _version(name) != jaxlib]
    if mismatched:
        versions = ", ".join(f"{name} {_version(name)}" for name in mismatched)
        cure = "pip install " + " ".join(f"{name}=={jaxlib}" for name in mismatched)
        return failure(f"{versions} with jaxlib {jaxlib}: not loaded", cure)
    others = [f"{name} {_version(name)}" for name in cuda + ["libtpu"] * ("libtpu" in names)]
    return ok(", ".join([f"jax and jaxlib {jax}", *others]))


def hosts() -> Check:
    """Checks that this host's name resolves, and reports the processes of the job."""
    visible = [name for name in MANAGED if name in os.environ]
    host = socket.gethostname()
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        what = f"this host's name, {host}, does not resolve ({error.strerror})"
        address = "ITS-ADDRESS" if visible else "127.0.0.1"
        cure = f"echo '{address} {host}' | sudo tee -a /etc/hosts"
        if visible:
            return failure(f"{what}: others ({visible[0]}) need it", cure)
        return warning(f"{what}: only several hosts need it", cure)
    index, count = 0, 1
    with contextlib.suppress(Exception):  # `devices` reports it if jax does not start.
        import jax

        index, count = jax.process_index(), jax.process_count()
    if count > 1:
        return ok(f"{host} is process {index} of {count}")
    if visible:
        return ok(f"{host}; {', '.join(visible)} set: `train` gets its peers from the cluster")
    return ok(f"{host}, one process alone")


def devices() -> Check:
    """Reports the devices that jax finds; warns if an accelerator is present but not used."""
    import jax

    platforms = os.environ.get("JAX_PLATFORMS", "")
    try:
        devices = jax.devices()
    except Exception as error:  # jax raises several types, and an AssertionError without a message.
        why = " ".join(str(error).split()) or type(error).__name__
        what = f"jax finds none{f' with JAX_PLATFORMS={platforms}' if platforms else ''}: {why}"
        cure = "unset JAX_PLATFORMS" if platforms else _details("")
        return failure(what, cure)
    first = jax.local_devices()[0]
    limit = (first.memory_stats() or {}).get("bytes_limit")
    memory = f", {limit / GiB:,.1f} GiB usable each" if limit else ""
    if limit and first.platform == "gpu":
        memory += f" ({FRACTION} is {os.environ.get(FRACTION, 'not set')})"
    finding = f"{len(devices)} x {first.device_kind} ({first.platform}){memory}"
    signs = {file: extra for file, extra in ACCELERATORS.items() if Path(file).exists()}
    signs |= {name: "tpu" for name in TPU_VARIABLES if name in os.environ}
    if first.platform != "cpu" or not signs:
        return ok(finding)
    sign, extra = next(iter(signs.items()))
    drivers = {"tpu": ("libtpu",), "cuda": ("jax-cuda13-plugin", "jax-cuda12-plugin")}[extra]
    cure = _details(extra) if any(map(_version, drivers)) else _install(f"[{extra}]")
    if platforms.startswith("cpu"):
        cure = "unset JAX_PLATFORMS"
    return warning(f"{sign} exists, but jax sees only {finding}", cure)


def products() -> Check:
    """Checks that every device of this process computes matrix products correctly, and that a
    repeated product is bit-identical."""
    import jax
    import numpy as np

    # Integers up to 100 are exact in bfloat16, and the sums of their products in float32.
    rng = np.random.default_rng(0)
    a, b = rng.integers(-100, 101, (2, 256, 256)).astype(np.float32)
    for device in jax.local_devices():
        x, y = jax.device_put(a, device), jax.device_put(b, device)
        first, second = (np.asarray(jax.numpy.matmul(x, y)) for _ in range(2))
        cure = "Exclude this device or host, and have it replaced"
        if not np.array_equal(first, second):
            return failure(f"{device}: one product had two results", cure)
        if not np.array_equal(first, a @ b):
            wrong = f"{(first != a @ b).sum():,} of {first.size:,}"
            return failure(f"{device}: {wrong} numbers are wrong", cure)
    count = len(jax.local_devices())
    return ok(f"correct on {count}, and bit-identical when repeated")


def open_files() -> Check:
    """Checks the limit on open files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= OPEN_FILES:
        return ok(f"{soft:,} allowed" if soft > 0 else "any number allowed")
    what = f"only {soft} may be open at a time: shards, checkpoints and sockets need {OPEN_FILES}"
    result = failure if soft < FEWEST_OPEN_FILES else warning
    return result(what, f"ulimit -n {4 * OPEN_FILES}")


def compiled_programs() -> Check:
    """Reports the compilation cache."""
    if os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "1").lower() in ("0", "false"):
        return ok("not cached: JAX_ENABLE_COMPILATION_CACHE is off")
    folder = os.environ.get(compilation_cache.FOLDER)
    if not folder:
        what = "not cached: the home directory is not writable. Every command compiles again"
        return warning(what, f"export {compilation_cache.FOLDER}=FOLDER, where only you can write")
    if not Path(folder).is_dir():
        return ok(f"none yet in {folder}")
    files = compilation_cache.cache_files(Path(folder))
    size = sum(file.stat().st_size for file in files)
    return ok(f"{len(files):,} in {folder} ({size / 1e6:,.0f} MB)")


CHECKS = (python, packages, pairings, open_files, compiled_programs, hosts, devices)
"""The checks that need no device, and `devices` itself, which must be last."""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _install(extra: str = "") -> str:
    """The command that installs this package, from its checkout if it runs from one."""
    where = f"-e '{PACKAGE.parent}{extra}'" if SETUP.exists() else f"'gpt3jax{extra}'"
    return f"pip install {where}"


def _details(platform: str) -> str:
    return f"JAX_PLATFORMS={platform} python -c 'import jax; jax.devices()' shows why"
