"""Ranks the legal layouts of an experiment on a slice, and explains the ranking."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

from gpt3jax.config import Experiment
from gpt3jax.errors import ConfigError
from gpt3jax.plan.estimate import Estimate
from gpt3jax.plan.layouts import Layout, layouts
from gpt3jax.plan.slices import Slice
from gpt3jax.runtime.chips import GiB
from gpt3jax.sharding.legal_meshes import check_some


@dataclass(frozen=True)
class Plan:
    """All candidate layouts with their estimates."""

    fitting: list[Estimate]
    """Layouts that fit, fastest first."""
    others: list[Estimate]
    """Layouts that do not fit, in ascending order of memory."""

    @property
    def best(self) -> Estimate:
        """The fastest layout that fits.

        Raises:
          ConfigError: none fits; the message says by how much and lists remedies.
        """
        if not self.fitting:
            raise ConfigError(too_big(self.others[0]))
        return self.fitting[0]

    def shortlist(self, count: int) -> list[Estimate]:
        """The fastest layouts that differ in more than their microbatch."""
        distinct = _unique(self.fitting, lambda at: (at.data, at.fsdp, at.tensor, at.remat))
        return distinct[:count]

    def alternatives(self, count: int) -> list[tuple[Estimate, str]]:
        """The best layout of each other `tensor` size and remat policy, and why it is worse."""
        best = self.best
        candidates = _unique([*self.fitting, *self.others], lambda at: (at.tensor, at.remat))
        rest = [each for each in candidates if each not in self.shortlist(count)]
        return [(each, explain(each, best)) for each in rest[:count]]


def plan(experiment: Experiment, slice: Slice, fixed: Iterable[str] = ()) -> Plan:
    """Estimates every legal layout; `fixed` names the parts to take from the experiment.

    Raises:
      ConfigError: no layout is legal.
    """
    check_some(experiment, slice.devices, slice.slices)
    required = {name: _configured(experiment, name) for name in fixed}
    estimates = [
        Estimate(experiment, layout, slice)
        for layout in layouts(experiment, slice.devices, slice.slices)
        if all(getattr(layout, name) == value for name, value in required.items())
    ]
    if not estimates:
        raise ConfigError(f"no legal layout of {slice.name} has {required}. Fix fewer of these")
    fitting = sorted((e for e in estimates if e.fits), key=lambda e: (e.step_s, e.peak_bytes))
    others = sorted((e for e in estimates if not e.fits), key=lambda e: e.peak_bytes)
    return Plan(fitting, others)


def too_big(estimate: Estimate) -> str:
    """Error message for an experiment whose smallest layout does not fit, with three remedies."""
    over = estimate.peak_bytes - estimate.budget_bytes
    return (
        f"{estimate.experiment.name} does not fit on {estimate.slice.name}: the smallest layout "
        f"needs {estimate.peak_bytes / GiB:.1f} GiB per device, {over / GiB:.1f} over the "
        f"{estimate.budget_bytes / GiB:.1f} to plan with ({largest(estimate)}). "
        f"{describe_remedies(estimate)}"
    )


def largest(estimate: Estimate) -> str:
    """The three largest terms of the memory estimate, in GiB."""
    parts = sorted(estimate.memory.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name} {size / GiB:.1f}" for name, size in parts)


def describe_remedies(estimate: Estimate) -> str:
    """Describes three remedies and the memory that each saves."""
    return "; ".join(f"{text} saves {saved / GiB:.1f} GiB" for text, saved in remedies(estimate))


def remedies(estimate: Estimate) -> list[tuple[str, float]]:
    """The three changes that save most memory, and the bytes per device that each saves."""
    layout = estimate.layout
    changes = {
        "twice the chips, along fsdp": dataclasses.replace(
            layout, fsdp=2 * layout.fsdp, microbatch=2 * layout.microbatch
        ),
        "twice the chips, along tensor": dataclasses.replace(layout, tensor=2 * layout.tensor),
        "four times the chips, along fsdp": dataclasses.replace(
            layout, fsdp=4 * layout.fsdp, microbatch=4 * layout.microbatch
        ),
        "half the microbatch": dataclasses.replace(layout, microbatch=layout.microbatch // 2),
        "--model.remat full": dataclasses.replace(layout, remat="full"),
    }
    saved = [
        (text, estimate.peak_bytes - dataclasses.replace(estimate, layout=changed).peak_bytes)
        for text, changed in changes.items()
        if changed.windows >= 1 and changed != layout
    ]
    return sorted(saved, key=lambda each: -each[1])[:3]


def explain(estimate: Estimate, best: Estimate) -> str:
    """Explains why a layout is not the best one."""
    if not estimate.fits:
        over = (estimate.peak_bytes - estimate.budget_bytes) / GiB
        return f"{over:,.1f} GiB too big: {max(estimate.memory, key=estimate.memory.__getitem__)}"
    slower = estimate.step_s / best.step_s - 1
    grown = {name: estimate.seconds[name] - best.seconds[name] for name in best.seconds}
    if estimate.flops["recomputed"] > best.flops["recomputed"] and grown["compute"] > 0:
        return f"{slower:.0%} slower: recomputes more"
    most = max(grown, key=grown.__getitem__)
    labels = {"tokens": "tensor ring", "weights": "all-gathers of weights"}
    return f"{slower:.0%} slower: {labels.get(most, most)}"


def _unique(estimates: list[Estimate], key: Callable[[Layout], Hashable]) -> list[Estimate]:
    """The first estimate for each distinct key of its layout."""
    first: dict[Hashable, Estimate] = {}
    for each in estimates:
        first.setdefault(key(each.layout), each)
    return list(first.values())


def _configured(experiment: Experiment, name: str) -> int | str:
    if name == "remat":
        return experiment.model.remat
    return experiment.microbatch if name == "microbatch" else getattr(experiment.mesh, name)
