"""What a training run needs, checked before it is started: one line each, and what cures it.

Nothing is changed: a probe folder beside the run comes and goes. On several
hosts it runs like `train`, on each of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
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

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpt3jax.config import Experiment
from gpt3jax.doctor import machine
from gpt3jax.doctor.machine import PACKAGE, Check, Status
from gpt3jax.errors import ConfigError, truncate
from gpt3jax.model.param_specs import count_params
from gpt3jax.plan.choose import UNKNOWN, choose
from gpt3jax.plan.estimate import USABLE, Estimate
from gpt3jax.plan.layouts import Layout, check_fits, check_some
from gpt3jax.plan.planner import plan
from gpt3jax.plan.slices import Slice
from gpt3jax.run_dir import Run, read_events
from gpt3jax.runtime.chips import GiB, chip_of
from gpt3jax.runtime.memory import available_bytes
from gpt3jax.sharding.distributed import MANAGED

CHECKPOINT = 12 * 1.05
"""Bytes per parameter: itself and two moments in float32, and what describes them."""
FILES = 1000
"""Files that a checkpoint may need, generously."""
CPU_FACTOR = 5
"""XLA's CPU programs ask for 1.2 to 5.3 times the estimate, which counts on bfloat16 and fused
attention (five steps of 1M to 34M parameters, by memory_analysis, jax 0.10.2, 2026-11-23)."""
CLOCK_SLACK_S = 60
"""File servers and other hosts may differ by so much."""
LINE, CURE = 174, 140
"""Characters of finding and cure together, and of the cure."""

COLOURS = {"ok": "green", "warning": "yellow", "failure": "bold red"}


def diagnose(experiment: Experiment | None, run: Path | None, *, as_json: bool) -> int:
    """Examine and print; returns the exit code: 1 if there is a failure.

    Args:
      experiment: What is to be trained; None leaves out what depends on it.
      run: The run's folder, there or not; runs/NAME if None.
      as_json: Print a JSON list instead of a table.
    """
    # What runs on the same GPU keeps its memory: the probes need little.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    folder = run or Path("runs") / (experiment.name if experiment else "")
    checks = examine(experiment, Run(folder))
    if as_json:
        print(json.dumps([dataclasses.asdict(check) for check in checks], indent=2))
    else:
        _print(checks)
    return int(any(check.status == "failure" for check in checks))


def examine(experiment: Experiment | None, run: Run) -> list[Check]:
    """Every check that applies; an error inside one is that one's failure.

    Without devices nothing is said of products and memory.
    """
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


def attempt(check: Callable[..., Check], *given: Any) -> Check:
    """The check's verdict, cut to a line; what it raises is a failure."""
    try:
        found = check(*given)
    except Exception as error:
        what, fix = _what_and_fix(error)
        found = Check(check.__name__.replace("_", " "), "failure", what, fix)
    cure = truncate(found.cure, CURE)
    return dataclasses.replace(found, finding=truncate(found.finding, LINE - len(cure)), cure=cure)


def clock(run: Run) -> Check:
    """Whether the clock is not behind what was already written."""
    now, said = time.time(), "the clock is behind, or was ahead"
    is_mac = sys.platform == "darwin"
    cure = f"sudo {'sntp -sS time.apple.com' if is_mac else 'timedatectl set-ntp true'}"
    written = max(file.stat().st_mtime for file in PACKAGE.rglob("*.py"))
    if written > now + CLOCK_SLACK_S:
        what = f"it is {_date(now)}, but this package is of {_date(written)}: {said}"
        return Check("clock", "failure", what, cure)
    times = [event.get("time") for event in read_events(run.ledger_file)]
    last = max((each for each in times if isinstance(each, int | float)), default=0)
    if last > now + CLOCK_SLACK_S:
        what = f"it is {_date(now)}, but the run's last event of {_date(last)}: {said}"
        return Check("clock", "warning", what, cure)
    return Check("clock", "ok", _date(now))


def write_access(run: Run) -> Check:
    """Whether files can be made, synced, renamed and locked where the run is to be."""
    folder = _nearest(run.path)
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
        return Check("write access", "failure", what, cure)
    return Check("write access", "ok", f"{folder}: create, sync, rename, lock, delete")


def lock(run: Run) -> Check:
    """Whether another process trains this run."""
    if not run.lock_file.is_file():
        return Check("lock", "ok", "free: there is no such run yet")
    with run.lock_file.open() as file:
        try:
            # Shared: enough to see an exclusive one, and NFS gives it to readers.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = file.read().strip()
            named = re.match(r"(\d+)(?: of (\S+))?", holder)
            cure = "Wait for it"
            if named:
                elsewhere = named[2] not in (None, socket.gethostname())
                kill = f"ssh {named[2]} kill {named[1]}" if elsewhere else f"kill {named[1]}"
                cure += f", or let it save and end: {kill}"
            what = f"trained by process {holder or 'unknown'}: two would spoil it"
            return Check("lock", "warning", what, cure)
    return Check("lock", "ok", "free")


def disk(experiment: Experiment, run: Run) -> Check:
    """Whether the checkpoints that are kept, and one on its way, have room."""
    model, keep = experiment.model, experiment.train.keep
    padding = (model.padded_vocabulary - model.vocabulary) * model.d_model
    each = CHECKPOINT * (count_params(model) + padding)
    held = _bytes_of(run.checkpoints)
    need = max(each, (keep + 1) * each - held)
    folder = _nearest(run.path)
    free, system = shutil.disk_usage(folder).free, os.statvfs(folder)
    more = " more" if held else ""
    said = (
        f"{keep} + 1 checkpoints of {_size(each)} need {_size(need)}{more}, {_size(free)} is free"
    )
    fewer = ", or --train.keep 1" if keep > 1 and 2 * each - held <= free else ""
    cure = f"Free some, --run on a larger disk{fewer}"
    if need > free:
        return Check("disk", "failure", f"{said} at {folder}", cure)
    # Some file systems do not count files and say 0.
    if system.f_files and system.f_favail < FILES * (keep + 1):
        what = f"{folder} takes only {system.f_favail:,} more files, whatever their size"
        return Check("disk", "failure", what, cure)
    return Check("disk", "ok", said)


def memory(experiment: Experiment) -> Check:
    """Whether a step fits, by the planner's estimate and the layout that `train` would take."""
    import jax

    from gpt3jax.sharding.mesh import slices_of

    found = jax.devices()
    limit, whose = _memory_of(jax.local_devices())
    chip = chip_of(found[0].device_kind) or UNKNOWN
    chip = dataclasses.replace(chip, hbm=limit * chip.devices / USABLE)
    slices = slices_of(found)
    there = Slice(chip, (len(found) // slices // chip.devices,), slices)
    # Of a job on several hosts, a process that has not joined sees a part of the devices.
    alone = jax.process_count() == 1 and any(name in os.environ for name in MANAGED)
    bad: Status = "warning" if alone else "failure"
    on = "alone on this host, " if alone else ""
    try:
        need = _as_trained(experiment, there, found[0].device_kind).peak_bytes
    except ConfigError as error:
        what, fix = _what_and_fix(error)
        return Check("memory", bad, on + what, _that_fits(experiment, there) or fix)
    said = f"by estimate a step takes {need / GiB:,.2f} of {limit / GiB:,.2f} GiB {whose}"
    if need > limit:
        more = f"More devices: gpt3jax plan experiments/{experiment.name}.py --chips KIND:COUNT"
        return Check("memory", bad, on + said, _that_fits(experiment, there) or more)
    on_cpu = found[0].platform == "cpu"
    if (need * CPU_FACTOR if on_cpu else need / USABLE) > limit:
        why = f"a CPU may take {CPU_FACTOR} times that" if on_cpu else f"over {USABLE:.0%} may fail"
        cure = f"If it fails: --train.microbatch {max(1, experiment.microbatch // 2)}"
        return Check("memory", "warning", f"{on}{said}; {why}", cure)
    return Check("memory", "ok", said)


def data(experiment: Experiment, run: Run) -> Check:
    """Whether the data is prepared, whole, and for this model."""
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
            return Check("data", "failure", f"{source.name} is not there", cure)
        manifest = load_manifest(source.path)
        windows += manifest.train.windows
        for shard in manifest.shards:
            file = manifest.folder / shard.name
            if not file.is_file() or file.stat().st_size != shard.bytes:
                what = f"{source.name}: {shard.name} is missing or cut short"
                return Check("data", "failure", what, f"Restore it, or {cure}")
    data_identity(experiment)
    return Check("data", "ok", f"{windows:,} windows of {model.context} tokens to train on")


def _as_trained(experiment: Experiment, there: Slice, kind: str) -> Estimate:
    from gpt3jax.sharding.mesh import resolve

    mesh, _ = choose(experiment, there.devices, kind, there.slices)
    sizes = resolve(mesh, there.devices)
    check_some(experiment, there.devices, there.slices)
    check_fits(experiment, **sizes)
    layout = Layout(**sizes, remat=experiment.model.remat, microbatch=experiment.microbatch)
    return Estimate(experiment, layout, there)


def _that_fits(experiment: Experiment, there: Slice) -> str:
    """The flags of the fastest layout that fits these devices; empty if none does."""
    try:
        return f"Add {plan(experiment, there).best.layout.overrides}"
    except ConfigError:
        return ""


def _memory_of(local: list[Any]) -> tuple[float, str]:
    """Bytes that each device of this process can have, and in words whose they are."""
    limit = (local[0].memory_stats() or {}).get("bytes_limit")
    chip = chip_of(local[0].device_kind)
    if limit or chip:
        return limit or chip.hbm / chip.devices, "per device"
    return available_bytes() / len(local), "free per device"


def _bytes_of(checkpoints: Path) -> int:
    """What the checkpoints that are there take; a run under way may be deleting some."""
    total = 0
    for folder in (each for each in checkpoints.glob("*") if each.name.isdecimal()):
        for path, _, names in os.walk(folder):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    total += os.lstat(os.path.join(path, name)).st_size
    return total


def _nearest(path: Path) -> Path:
    """The path, or what there is of it."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if os.path.exists(each))


def _what_and_fix(error: Exception) -> tuple[str, str]:
    """An error's WHAT: WHY, and its FIX where it has one."""
    text = " ".join(str(error).split())
    if isinstance(error, ConfigError):
        what, _, fix = text.rpartition(". ")
        return what or fix, fix
    more = "python -c 'import jax; jax.print_environment_info()' tells more"
    return f"{type(error).__name__}: {text}", more


def _size(size: float) -> str:
    units = ("B", "kB", "MB", "GB", "TB")
    power = next(k for k in range(len(units)) if size < 1000 ** (k + 1) or k == len(units) - 1)
    return f"{size / 1000**power:,.1f} {units[power]}"


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _print(checks: list[Check]) -> None:
    """A line each: wrapped to a terminal, whole when piped."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 10_000
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        said = f"{check.finding}. {check.cure}" if check.cure else check.finding
        table.add_row(Text(check.status, COLOURS[check.status]), check.name, Text(said))
    console.print(table)
    number = {status: sum(check.status == status for check in checks) for status in COLOURS}
    console.print(", ".join(f"{status} {many}" for status, many in number.items()))
