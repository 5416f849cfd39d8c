"""The measured times of a step's kernels, from a trace, beside the estimated ones.

The events of a trace are joined to the instructions of the compiled step by name. The time of a
kernel is that from its start to its end. Kernels that overlap, as many do on CPUs, are counted in
full, so that their sum may exceed the time of the step; `covered` counts each moment once.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from jax.profiler import ProfileData

from gpt3jax.errors import RunError
from gpt3jax.plan.kernels import Kernel, kernel_groups, kernel_table, total_seconds
from gpt3jax.runtime.chips import Chip
from gpt3jax.train.monitor.profile import Trace

OTHER = ("not in the step's program", "")
"""Part and work of what ran on the device besides, such as copies and other programs."""


class Event(NamedTuple):
    """An execution on a device; times are nanoseconds."""

    device: str
    module: str
    operation: str
    start: float
    end: float


@dataclass(frozen=True)
class Measured:
    """What the kernels of one part of the model and one kind of work took."""

    kernel: Kernel
    """The estimate."""
    count: float
    """Executions per step and device."""
    seconds: float
    """Per step and device."""


@dataclass(frozen=True)
class Profile:
    """A trace, summed up."""

    folder: str
    steps: int
    step_s: float
    """Seconds per step, from the start of the first to the end of the last."""
    covered: float
    """Share of this time in which a kernel of the step's program ran."""
    kernels: list[Measured]
    """In descending order of measured time."""

    def record(self) -> dict[str, Any]:
        """As a JSON object; estimates are null where the chip's rates are not known."""
        table = [
            vars(each.kernel)
            | {"seconds": each.kernel.seconds if each.kernel.limit else None}
            | {"measured_count": each.count, "measured_s": each.seconds}
            for each in self.kernels
        ]
        sums = {
            "kernel_s": total_seconds([each.kernel for each in self.kernels]) or None,
            "measured_kernel_s": sum(each.seconds for each in self.kernels),
        }
        figures = {name: value for name, value in vars(self).items() if name != "kernels"}
        return figures | {"kernel_table": table} | sums


def sum_up(trace: Trace, chip: Chip | None) -> Profile:
    """Sums up a trace by part of the model and kind of work; `chip` is None if it is not known.

    Raises:
      RunError: the trace has no step.
    """
    files = sorted(trace.folder.rglob("*.xplane.pb"))
    data = ProfileData.from_file(str(files[-1])) if files else ProfileData.from_text_proto("")
    starts = [each.start_ns for each in _all_events(data) if each.name == trace.step]
    if not starts:
        raise RunError(f"{trace.folder}: the trace has no step of {trace.step}. Try again")
    module = re.match(r"HloModule ([\w.\-]+)", trace.program)
    modules = ("", module[1] if module else "")
    events, groups = list(_executions(data)), kernel_groups(trace.program)
    # In a CUDA graph only the kernel of a fusion is named, after the fusion and without dots.
    groups = {name.replace(".", "_"): group for name, group in groups.items()} | groups
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0.0])
    spans: dict[str, list[tuple[float, float]]] = {each.device: [] for each in events}
    for each in events:
        is_of_step = each.module in modules and each.operation in groups
        group = groups[each.operation] if is_of_step else OTHER
        if group is not None:
            sums[group][0] += 1
            sums[group][1] += each.end - each.start
            spans[each.device] += [(each.start, each.end)] * is_of_step
    wall = max((each.end for each in events), default=max(starts)) - min(starts)
    covered = sum(map(_union, spans.values())) / (len(spans) * wall) if events else 0.0
    table = kernel_table(trace.program, chip, trace.microbatches)
    estimated = {(each.part, each.work): each for each in table}
    runs = len(starts) * max(1, len(spans))
    measured = [
        Measured(
            estimated.get(key, Kernel(*key, 0, 0.0, 0.0, 0.0, "")),
            sums[key][0] / runs,
            sums[key][1] / runs / 1e9,
        )
        for key in {**estimated, **sums}
    ]
    measured.sort(key=lambda each: -each.seconds)
    return Profile(str(trace.folder), len(starts), wall / len(starts) / 1e9, covered, measured)


def _all_events(data: Any) -> Iterator[Any]:
    for plane in data.planes:
        for line in plane.lines:
            yield from line.events


def _executions(data: Any) -> Iterator[Event]:
    """What ran on devices. On CPUs, an operation starts on one thread and may end on another."""
    for plane in data.planes:
        is_device = plane.name.startswith("/device:")
        started: dict[Any, Event] = {}
        ended: dict[Any, float] = {}
        for line in plane.lines:
            # Other lines of a device repeat these events, by module, step or source line.
            if is_device and not line.name.startswith(("Stream", "XLA Ops")):
                continue
            for event in line.events:
                stats = dict(event.stats)
                if event.name.startswith("end: "):
                    ended[stats.get("_c")] = event.start_ns
                elif is_device or "hlo_op" in stats:
                    # A TPU names an operation by its line of HLO text.
                    operation = stats.get("hlo_op") or event.name.partition(" = ")[0].lstrip("%")
                    device = f"{plane.name} {stats.get('device_ordinal', '')}"
                    key = stats.get("_p") or len(started)
                    started[key] = Event(
                        device, str(stats.get("hlo_module", "")), str(operation), event.start_ns,
                        event.start_ns + event.duration_ns,
                    )  # fmt: skip
        for key, event in started.items():
            yield event._replace(end=max(event.end, ended.get(key, 0.0)))


def _union(spans: list[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
