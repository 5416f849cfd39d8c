"""Choosing among the legal layouts of an experiment on a slice, and saying why."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from gpt3jax.config import Experiment
from gpt3jax.errors import ConfigError
from gpt3jax.plan.estimate import Estimate
from gpt3jax.plan.layouts import check_some, layouts
from gpt3jax.plan.slices import Slice
from gpt3jax.runtime.chips import GiB


@dataclass(frozen=True)
class Plan:
    """What was looked at, and the best of it."""

    fitting: list[Estimate]
    """Layouts that fit, fastest first."""
    others: list[Estimate]
    """Those that do not, nearest to fitting first."""

    @property
    def best(self) -> Estimate:
        """The fastest that fits.

        Raises:
          ConfigError: none fits; what is over, and what would help.
        """
        if not self.fitting:
            raise ConfigError(too_big(self.others[0]))
        return self.fitting[0]

    def shortlist(self, count: int) -> list[Estimate]:
        """The fastest layouts that differ in more than their microbatch."""
        return _first_of_each(self.fitting, lambda at: (at.data, at.fsdp, at.tensor, at.remat))[
            :count
        ]

    def losers(self, count: int) -> list[tuple[Estimate, str]]:
        """The best of each other mesh and policy, and why it loses."""
        chosen = self.best
        everything = [*self.fitting, *self.others]
        kinds = _first_of_each(everything, lambda at: (at.tensor, at.remat))
        rest = [each for each in kinds if each not in self.shortlist(count)]
        return [(each, why_not(each, chosen)) for each in rest[:count]]


def plan(experiment: Experiment, slice: Slice, fixed: Iterable[str] = ()) -> Plan:
    """Estimate every legal layout; `fixed` names parts that stay as the experiment has them.

    Raises:
      ConfigError: no layout is legal.
    """
    check_some(experiment, slice.devices, slice.slices)
    wanted = {name: _as_it_is(experiment, name) for name in fixed}
    found = [
        Estimate(experiment, layout, slice)
        for layout in layouts(experiment, slice.devices, slice.slices)
        if all(getattr(layout, name) == value for name, value in wanted.items())
    ]
    if not found:
        raise ConfigError(f"no legal layout of {slice.name} has {wanted}. Leave some of it open")
    fitting = sorted((e for e in found if e.fits), key=lambda e: (e.step_s, e.peak_bytes))
    others = sorted((e for e in found if not e.fits), key=lambda e: e.peak_bytes)
    return Plan(fitting, others)


def too_big(estimate: Estimate) -> str:
    """Why the smallest layout does not fit, in words: what is over, and three ways out."""
    over = estimate.peak_bytes - estimate.budget_bytes
    return (
        f"{estimate.experiment.name} does not fit on {estimate.slice.name}: the smallest layout "
        f"needs {estimate.peak_bytes / GiB:.1f} GiB per device, {over / GiB:.1f} over the "
        f"{estimate.budget_bytes / GiB:.1f} to plan with ({largest(estimate)}). "
        f"{ways_out(estimate)}"
    )


def largest(estimate: Estimate) -> str:
    """The three largest parts of the memory, in GiB."""
    parts = sorted(estimate.memory.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name} {size / GiB:.1f}" for name, size in parts)


def ways_out(estimate: Estimate) -> str:
    """Three changes, and what each would save."""
    return "; ".join(f"{text} saves {saved / GiB:.1f} GiB" for text, saved in remedies(estimate))


def remedies(estimate: Estimate) -> list[tuple[str, float]]:
    """Three changes and the bytes per device that each would save."""
    at = estimate.layout
    changes = {
        "twice the chips, along fsdp": dataclasses.replace(
            at, fsdp=2 * at.fsdp, microbatch=2 * at.microbatch
        ),
        "twice the chips, along tensor": dataclasses.replace(at, tensor=2 * at.tensor),
        "four times the chips, along fsdp": dataclasses.replace(
            at, fsdp=4 * at.fsdp, microbatch=4 * at.microbatch
        ),
        "half the windows at once": dataclasses.replace(at, microbatch=at.microbatch // 2),
        "recomputing whole layers": dataclasses.replace(at, remat="full"),
    }
    saved = [
        (text, estimate.peak_bytes - dataclasses.replace(estimate, layout=layout).peak_bytes)
        for text, layout in changes.items()
        if layout.windows >= 1 and layout != at
    ]
    return sorted(saved, key=lambda each: -each[1])[:3]


def why_not(estimate: Estimate, best: Estimate) -> str:
    """Why a layout is not the best."""
    if not estimate.fits:
        over = (estimate.peak_bytes - estimate.budget_bytes) / GiB
        return f"{over:,.1f} GiB too big: {max(estimate.memory, key=estimate.memory.__getitem__)}"
    slower = estimate.step_s / best.step_s - 1
    grown = {name: estimate.seconds[name] - best.seconds[name] for name in best.seconds}
    if estimate.flops["recomputed"] > best.flops["recomputed"] and grown["compute"] > 0:
        return f"{slower:.0%} slower: recomputes more"
    most = max(grown, key=grown.__getitem__)
    words = {"tokens": "the ring", "weights": "fetching weights"}
    return f"{slower:.0%} slower: {words.get(most, most)}"


def _first_of_each(estimates: list[Estimate], key) -> list[Estimate]:
    first: dict = {}
    for each in estimates:
        first.setdefault(key(each.layout), each)
    return list(first.values())


def _as_it_is(experiment: Experiment, name: str) -> int | str:
    if name == "remat":
        return experiment.model.remat
    return experiment.microbatch if name == "microbatch" else getattr(experiment.mesh, name)
