"""What `doctor` checks of the machine and of what is installed on it, whatever is trained."""

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
from pathlib import Path
from typing import Literal

from gpt3jax.runtime import compilation_cache
from gpt3jax.runtime.chips import GiB
from gpt3jax.sharding.distributed import MANAGED

PACKAGE = Path(__file__).parents[1]
SETUP = PACKAGE.parent / "setup.cfg"
OLDEST_PYTHON = (3, 11)
ACCELERATORS = {"/dev/nvidia0": "cuda", "/dev/accel0": "tpu", "/dev/vfio/0": "tpu"}
"""Device files, and the extra that installs what drives them."""
TPU_VARIABLES = ("TPU_ACCELERATOR_TYPE", "TPU_WORKER_HOSTNAMES", "TPU_NAME")
OPEN_FILES, FEWEST_OPEN_FILES = 1024, 128
"""Below the first a large run may fail; the smallest one has 53 open."""

Status = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Check:
    """What was looked at, and what was found."""

    name: str
    status: Status
    finding: str
    cure: str = ""
    """What to type or change; empty when all is well."""


def python() -> Check:
    """Whether this Python is new enough."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        cure = f"python{oldest} -m venv .venv, or make PYTHON=python{oldest}"
        return Check("python", "failure", f"{version} is too old: jax needs {oldest}", cure)
    last = "; the last jax for it is 0.10.2" if sys.version_info[:2] == (3, 11) else ""
    return Check("python", "ok", f"{version}{last}")


def packages() -> Check:
    """Whether each package that setup.cfg names is installed, in its range, for this Python."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    wanted = [Requirement(line) for line in requirements()]
    here = ".".join(map(str, sys.version_info[:3]))
    wrong = {}
    for each in wanted:
        installed = _version(each.name)
        if installed is None:
            wrong[f"{each.name} is missing"] = each
        elif not each.specifier.contains(installed, prereleases=True):
            wrong[f"{each.name} {installed} is outside {each.specifier}"] = each
        else:
            pythons = importlib.metadata.metadata(each.name).get("Requires-Python") or ""
            if not SpecifierSet(pythons).contains(here, prereleases=True):
                wrong[f"{each.name} {installed} is for Python {pythons}, not {here}"] = each
    if not wrong:
        return Check("packages", "ok", f"{len(wanted)} installed, each within its range")
    only = f"pip install '{next(iter(wrong.values()))}'"
    return Check("packages", "failure", "; ".join(wrong), only if len(wrong) == 1 else _install())


def requirements() -> list[str]:
    """install_requires: of the checkout, or as this package was installed."""
    if SETUP.exists():
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(SETUP)
        return list(filter(None, parser["options"]["install_requires"].split("\n")))
    listed = importlib.metadata.requires("gpt3jax") or []
    return [line for line in listed if "extra ==" not in line]


def pairings() -> Check:
    """Whether jax, jaxlib and what drives accelerators are of one version."""
    jax, jaxlib = _version("jax"), _version("jaxlib")
    if jax is None or jax != jaxlib:
        what = f"jax {jax or 'missing'}, jaxlib {jaxlib or 'missing'}: they come as a pair"
        cure = f"pip install jax=={jax} jaxlib=={jax}" if jax else _install()
        return Check("pairings", "failure", what, cure)
    names = {
        re.sub(r"[-_.]+", "-", each.name or "").lower()
        for each in importlib.metadata.distributions()
    }
    cuda = sorted(name for name in names if re.fullmatch(r"jax-cuda\d+-(plugin|pjrt)", name))
    wrong = [name for name in cuda if _version(name) != jaxlib]
    if wrong:
        said = ", ".join(f"{name} {_version(name)}" for name in wrong)
        cure = "pip install " + " ".join(f"{name}=={jaxlib}" for name in wrong)
        return Check("pairings", "failure", f"{said} with jaxlib {jaxlib}: not loaded", cure)
    others = [f"{name} {_version(name)}" for name in cuda + ["libtpu"] * ("libtpu" in names)]
    return Check("pairings", "ok", ", ".join([f"jax and jaxlib {jax}", *others]))


def hosts() -> Check:
    """Who else there is, as far as this process can tell; and whether this host has a name."""
    visible = [name for name in MANAGED if name in os.environ]
    host = socket.gethostname()
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        what = f"this host's name, {host}, does not resolve ({error.strerror})"
        address = "ITS-ADDRESS" if visible else "127.0.0.1"
        cure = f"echo '{address} {host}' | sudo tee -a /etc/hosts"
        if visible:
            return Check("hosts", "failure", f"{what}: others ({visible[0]}) need it", cure)
        return Check("hosts", "warning", f"{what}: only several hosts need it", cure)
    index, count = 0, 1
    with contextlib.suppress(Exception):  # Where jax does not start, `devices` says so.
        import jax

        index, count = jax.process_index(), jax.process_count()
    if count > 1:
        said = f"{host} is process {index} of {count}"
    elif visible:
        said = f"{host}; {', '.join(visible)} set: `train` asks the cluster who else there is"
    else:
        said = f"{host}, one process alone"
    return Check("hosts", "ok", said)


def devices() -> Check:
    """What jax computes on; a warning where it overlooks an accelerator."""
    import jax

    asked = os.environ.get("JAX_PLATFORMS", "")
    try:
        found = jax.devices()
    except Exception as error:  # Of many kinds, one of them without words.
        said = " ".join(str(error).split()) or type(error).__name__
        what = f"jax finds none{f' with JAX_PLATFORMS={asked}' if asked else ''}: {said}"
        return Check("devices", "failure", what, "unset JAX_PLATFORMS" if asked else _why(""))
    first = jax.local_devices()[0]
    limit = (first.memory_stats() or {}).get("bytes_limit")
    memory = f", {limit / GiB:,.1f} GiB each to use" if limit else ""
    said = f"{len(found)} x {first.device_kind} ({first.platform}){memory}"
    signs = {file: extra for file, extra in ACCELERATORS.items() if Path(file).exists()}
    signs |= {name: "tpu" for name in TPU_VARIABLES if name in os.environ}
    if first.platform != "cpu" or not signs:
        return Check("devices", "ok", said)
    sign, extra = next(iter(signs.items()))
    drivers = {"tpu": ("libtpu",), "cuda": ("jax-cuda13-plugin", "jax-cuda12-plugin")}[extra]
    cure = _why(extra) if any(map(_version, drivers)) else _install(f"[{extra}]")
    if asked.startswith("cpu"):
        cure = "unset JAX_PLATFORMS"
    return Check("devices", "warning", f"{sign} is there, but jax sees only {said}", cure)


def products() -> Check:
    """Whether every device of this process multiplies right, and twice the same."""
    import jax
    import numpy as np

    # Whole numbers up to 100: exact in bfloat16, and so are their sums in float32.
    draw = np.random.default_rng(0)
    a, b = draw.integers(-100, 101, (2, 256, 256)).astype(np.float32)
    for device in jax.local_devices():
        x, y = jax.device_put(a, device), jax.device_put(b, device)
        first, second = (np.asarray(jax.numpy.matmul(x, y)) for _ in range(2))
        cure = "Leave this device or host out, and have it replaced"
        if not np.array_equal(first, second):
            return Check("products", "failure", f"{device}: one product, two results", cure)
        if not np.array_equal(first, a @ b):
            wrong = f"{(first != a @ b).sum():,} of {first.size:,}"
            return Check("products", "failure", f"{device}: {wrong} numbers are wrong", cure)
    return Check("products", "ok", f"right on {len(jax.local_devices())}, twice the same bits")


def open_files() -> Check:
    """Whether enough files may be open at a time."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= OPEN_FILES:
        return Check("open files", "ok", f"{soft:,} allowed" if soft > 0 else "any number allowed")
    said = f"only {soft} may be open at a time: shards, checkpoints and sockets need {OPEN_FILES}"
    status = "failure" if soft < FEWEST_OPEN_FILES else "warning"
    return Check("open files", status, said, f"ulimit -n {4 * OPEN_FILES}")


def compiled_programs() -> Check:
    """Whether those of earlier commands are kept."""
    if os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "1").lower() in ("0", "false"):
        return Check("compiled programs", "ok", "not kept: JAX_ENABLE_COMPILATION_CACHE is off")
    folder = os.environ.get(compilation_cache.FOLDER)
    if not folder:
        cure = f"export {compilation_cache.FOLDER}=FOLDER, one that nobody else can write"
        what = "not kept: no home folder that can be written. Every command compiles anew"
        return Check("compiled programs", "warning", what, cure)
    if not Path(folder).is_dir():
        return Check("compiled programs", "ok", f"none yet in {folder}")
    files = compilation_cache.cache_files(Path(folder))
    size = sum(file.stat().st_size for file in files)
    return Check("compiled programs", "ok", f"{len(files):,} in {folder} ({size / 1e6:,.0f} MB)")


CHECKS = (python, packages, pairings, open_files, compiled_programs, hosts, devices)
"""Those that need no device, and the one that finds them."""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _install(extra: str = "") -> str:
    """How this package is installed: from its checkout where it runs from one."""
    where = f"-e '{PACKAGE.parent}{extra}'" if SETUP.exists() else f"'gpt3jax{extra}'"
    return f"pip install {where}"


def _why(platform: str) -> str:
    return f"JAX_PLATFORMS={platform} python -c 'import jax; jax.devices()' tells more"
