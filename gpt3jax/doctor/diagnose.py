"""`gpt3jax doctor`: checks what a training run needs, with a one-line finding and remedy for each.

Nothing is changed, except that a temporary probe directory is created next to the run. On several
hosts, start it on each of them like `train`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt3jax.config import Experiment
from gpt3jax.doctor import machine
from gpt3jax.doctor.machine import PACKAGE, Check, failure, ok, warning
from gpt3jax.errors import ConfigError, truncate
from gpt3jax.model.trainable import state_bytes
from gpt3jax.plan.choose import UNKNOWN, choose
from gpt3jax.plan.estimate import Estimate
from gpt3jax.plan.layouts import Layout
from gpt3jax.plan.planner import plan
from gpt3jax.plan.slices import Slice
from gpt3jax.run_dir import Run, read_events
from gpt3jax.runtime.chips import GiB, chip_of
from gpt3jax.runtime.memory import USABLE, available_bytes
from gpt3jax.sharding.distributed import MANAGED
from gpt3jax.sharding.legal_meshes import check_fits, check_some

METADATA = 1.05
"""Size of a checkpoint over that of its arrays."""
FILES = 1000
"""Upper bound on the number of files of a checkpoint."""
CPU_FACTOR = 5
"""XLA's CPU programs need 1.2 to 5.3 times the estimate, which assumes bfloat16 and fused
attention (five models of 1M to 34M parameters, by memory_analysis, jax 0.10.2, 2026-11-23)."""
CLOCK_SLACK_S = 60
"""Tolerated difference to the clocks of file servers and other hosts."""
LINE, CURE = 174, 140
"""Maximum characters of finding and cure together, and of the cure."""


def examine(experiment: Experiment | None, run: Run) -> list[Check]:
    """Runs every check that applies; those of products and memory need devices."""
    checks = [attempt(check) for check in machine.CHECKS]
    has_devices = checks[-1].status != "failure"
    if has_devices:
        checks.append(attempt(machine.products))
    checks += [attempt(check, run) for check in (clock, write_access, lock)]
    if experiment is not None:
        checks += [attempt(disk, experiment, run), attempt(data, experiment, run)]
        if has_devices:
            checks.append(attempt(memory, experiment))
    return checks


def attempt(check: Callable[..., Check], *arguments: Any) -> Check:
    """Runs a check, truncates its texts to a line, and turns an exception into a failure."""
    try:
        result = check(*arguments)
    except Exception as error:
        result = failure(*_what_and_fix(error))
    cure = truncate(result.cure, CURE)
    finding = truncate(result.finding, LINE - len(cure))
    return Check(check.__name__.replace("_", " "), result.status, finding, cure)


def clock(run: Run) -> Check:
    """Checks that the clock is not behind the timestamps of existing files."""
    now, reason = time.time(), "the clock is behind, or was ahead"
    is_mac = sys.platform == "darwin"
    cure = f"sudo {'sntp -sS time.apple.com' if is_mac else 'timedatectl set-ntp true'}"
    written = max(file.stat().st_mtime for file in PACKAGE.rglob("*.py"))
    if written > now + CLOCK_SLACK_S:
        return failure(
            f"it is {_date(now)}, but this package is of {_date(written)}: {reason}", cure
        )
    times = [event.get("time") for event in read_events(run.ledger_file)]
    last = max((each for each in times if isinstance(each, int | float)), default=0)
    if last > now + CLOCK_SLACK_S:
        what = f"it is {_date(now)}, but the run's last event is of {_date(last)}: {reason}"
        return warning(what, cure)
    return ok(_date(now))


def write_access(run: Run) -> Check:
    """Checks that files can be created, synced, renamed and locked at the run directory."""
    folder = _existing_ancestor(run.path)
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as probe:
            before, after = Path(probe) / "before", Path(probe) / "after"
            with before.open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.write("probe")
                file.flush()
                os.fsync(file.fileno())
                os.replace(before, after)
    except OSError as error:
        what = f"{folder} cannot be written: {error.strerror or error}"
        cure = "Name another folder with --run"
        if isinstance(error, PermissionError):
            cure = f"sudo install -d -o $(id -un) {run.path}"
        return failure(what, cure)
    return ok(f"{folder}: create, sync, rename, lock, delete")


def lock(run: Run) -> Check:
    """Checks that no other process is training this run."""
    if not run.lock_file.is_file():
        return ok("free: the run does not exist yet")
    with run.lock_file.open() as file:
        try:
            # A shared lock detects an exclusive one, and NFS grants it to readers.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = file.read().strip()
            cure = "Wait for it"
            if match := re.match(r"(\d+)(?: of (\S+))?", holder):
                pid, host = match.groups()
                is_remote = host not in (None, socket.gethostname())
                kill = f"ssh {host} kill {pid}" if is_remote else f"kill {pid}"
                cure += f", or make it save and exit: {kill}"
            what = f"trained by process {holder or 'unknown'}: two would corrupt it"
            return warning(what, cure)
    return ok("free")


def disk(experiment: Experiment, run: Run) -> Check:
    """Checks that the disk has space for `train.keep` checkpoints and one being written."""
    keep = experiment.train.keep
    size = METADATA * state_bytes(experiment)
    existing = _checkpoint_bytes(run.checkpoints)
    needed = max(size, (keep + 1) * size - existing)
    folder = _existing_ancestor(run.path)
    free, system = shutil.disk_usage(folder).free, os.statvfs(folder)
    more = " more" if existing else ""
    finding = (
        f"{keep} + 1 checkpoints of {_size(size)} need {_size(needed)}{more}, {_size(free)} is free"
    )
    fewer = ", or --train.keep 1" if keep > 1 and 2 * size - existing <= free else ""
    cure = f"Free some, --run on a larger disk{fewer}"
    if needed > free:
        return failure(f"{finding} at {folder}", cure)
    # File systems without a limit on the number of files report 0.
    if system.f_files and system.f_favail < FILES * (keep + 1):
        files = f"{system.f_favail:,} more files"
        return failure(f"{folder} takes only {files}, whatever their size", cure)
    return ok(finding)


def memory(experiment: Experiment) -> Check:
    """Checks that a step fits, by the planner's estimate for the layout that `train` would use."""
    import jax

    from gpt3jax.sharding.mesh import slices_of

    devices = jax.devices()
    limit, limit_name = _memory_limit(jax.local_devices())
    chip = chip_of(devices[0].device_kind) or UNKNOWN
    chip = dataclasses.replace(chip, hbm=limit * chip.devices / USABLE)
    slices = slices_of(devices)
    available = Slice(chip, (len(devices) // slices // chip.devices,), slices)
    # In a job on several hosts, a process that has not joined sees only some of the devices.
    alone = jax.process_count() == 1 and any(name in os.environ for name in MANAGED)
    bad = warning if alone else failure
    on = "alone on this host, " if alone else ""
    try:
        needed = _estimate(experiment, available, devices[0].device_kind).peak_bytes
    except ConfigError as error:
        what, fix = _what_and_fix(error)
        return bad(on + what, _fitting_flags(experiment, available) or fix)
    finding = f"by estimate a step takes {needed / GiB:,.2f} of {limit / GiB:,.2f} GiB {limit_name}"
    if needed > limit:
        more = f"More devices: gpt3jax plan experiments/{experiment.name}.py --chips KIND:COUNT"
        return bad(on + finding, _fitting_flags(experiment, available) or more)
    on_cpu = devices[0].platform == "cpu"
    if (needed * CPU_FACTOR if on_cpu else needed / USABLE) > limit:
        why = f"a CPU may take {CPU_FACTOR} times that" if on_cpu else f"over {USABLE:.0%} may fail"
        cure = f"If it fails: --train.microbatch {max(1, experiment.microbatch // 2)}"
        return warning(f"{on}{finding}; {why}", cure)
    return ok(finding)


def data(experiment: Experiment, run: Run) -> Check:
    """Checks that the data is prepared, complete and compatible with the model."""
    from gpt3jax.data.manifest import load_manifest
    from gpt3jax.train.run_setup import data_identity

    experiment = run.located(experiment)
    model, windows = experiment.model, 0
    for source in experiment.data.sources:
        cure = (
            f"gpt3jax data prepare --corpus FILES --out {source.path} --context {model.context} "
            f"--vocabulary {model.vocabulary}"
        )
        if not Path(source.path).is_dir():
            return failure(f"{source.name} does not exist", cure)
        manifest = load_manifest(source.path)
        windows += manifest.train.windows
        for shard in manifest.shards:
            file = manifest.folder / shard.name
            if not file.is_file() or file.stat().st_size != shard.bytes:
                what = f"{source.name}: {shard.name} is missing or truncated"
                return failure(what, f"Restore it, or {cure}")
    data_identity(experiment)
    return ok(f"{windows:,} windows of {model.context} tokens to train on")


def _estimate(experiment: Experiment, available: Slice, kind: str) -> Estimate:
    """The estimate of the layout that `train` would use on these devices."""
    from gpt3jax.sharding.mesh import resolve

    mesh, _ = choose(experiment, available.devices, kind, available.slices)
    sizes = resolve(mesh, available.devices)
    check_some(experiment, available.devices, available.slices)
    check_fits(experiment, **sizes)
    layout = Layout(**sizes, remat=experiment.model.remat, microbatch=experiment.microbatch)
    return Estimate(experiment, layout, available)


def _fitting_flags(experiment: Experiment, available: Slice) -> str:
    """Advice with the flags of the fastest layout that fits these devices; empty if none does."""
    try:
        return f"Add {plan(experiment, available).best.layout.overrides}"
    except ConfigError:
        return ""


def _memory_limit(local: list[Any]) -> tuple[float, str]:
    """Bytes available to each device of this process, and a description for messages."""
    if limit := (local[0].memory_stats() or {}).get("bytes_limit"):
        return limit, "per device"
    if chip := chip_of(local[0].device_kind):
        return chip.hbm / chip.devices, "per device"
    return available_bytes() / len(local), "free per device"


def _checkpoint_bytes(checkpoints: Path) -> int:
    """Size of the existing checkpoints; a running process may delete some concurrently."""
    total = 0
    for folder in (each for each in checkpoints.glob("*") if each.name.isdecimal()):
        for path, _, names in os.walk(folder):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    total += os.lstat(os.path.join(path, name)).st_size
    return total


def _existing_ancestor(path: Path) -> Path:
    """The path itself or its closest ancestor that exists."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if os.path.exists(each))


def _what_and_fix(error: Exception) -> tuple[str, str]:
    """Splits an error message of the form `WHAT: WHY. FIX` into `WHAT: WHY` and `FIX`."""
    text = " ".join(str(error).split())
    if isinstance(error, ConfigError):
        what, _, fix = text.rpartition(". ")
        return what or fix, fix
    more = "For details: python -c 'import jax; jax.print_environment_info()'"
    return f"{type(error).__name__}: {text}", more


def _size(size: float) -> str:
    units = ("B", "kB", "MB", "GB", "TB")
    power = next(k for k in range(len(units)) if size < 1000 ** (k + 1) or k == len(units) - 1)
    return f"{size / 1000**power:,.1f} {units[power]}"


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
