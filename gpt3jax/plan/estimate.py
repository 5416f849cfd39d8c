"""Analytical estimate of a training step on a slice: memory, FLOPs, communication and time.

Every collective is explicit in the code (sharding/collectives.py, sharding/ring.py), so the bytes
on the wire are counted exactly. The time is a roofline model:

    step = max(work, wire) + 0.1 min(work, wire) + replicas + update
    work = compute + elementwise              wire = weights + tokens

The all-gather of weights along `fsdp` and the ring along `tensor` overlap with matrix products,
except for a tenth. The all-reduce of gradients over `data` (replicas) and the optimizer update do
not overlap. FLOPs, bytes and seconds are per device and step.

Legend: D width, A heads x head width, F MLP width; d f t the sizes of the mesh axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from gpt3jax.config import Experiment
from gpt3jax.model.param_specs import (
    LOGIT_ROWS,
    flops_per_token,
    named_specs,
    param_specs,
    visible_pairs,
)
from gpt3jax.model.trainable import trained
from gpt3jax.plan.layouts import Layout
from gpt3jax.plan.slices import Slice
from gpt3jax.runtime.memory import USABLE
from gpt3jax.sharding.axes import RULES

ATTENTION = 0.5
"""FLOP rate of attention kernels as a share of the rate of matrix products."""
EXPOSED = 0.1
"""Share of the communication that does not overlap with work."""
RING_SHARE = 0.9
"""Share of a link's bandwidth that large transfers achieve."""


@dataclass(frozen=True)
class Estimate:
    """Cost of one training step of an experiment, for one layout on one slice."""

    experiment: Experiment
    layout: Layout
    slice: Slice

    @cached_property
    def memory(self) -> dict[str, float]:
        """Bytes per device at the peak, by purpose."""
        m, layout, t = self.experiment.model, self.layout, self.layout.tensor
        tokens = layout.windows * m.context
        D, F, A = m.d_model, m.d_ff, m.n_heads * m.d_head
        state, trains = self._local_elements, self._local_trained
        accumulates = self.experiment.batch_sequences > layout.microbatch
        saved = {"none": 3 * D + 4 * A + 2 * F, "dots": D + 4 * A + F, "mlp": D + 4 * A, "full": 0}
        weights = (4 * D * A + 2 * D * F) / t
        working = tokens * ((3 * F + 7 * A + 4 * D) / t + (D if t > 1 else 0)) + 2 * weights
        rows = LOGIT_ROWS["tpu" if self.slice.chip.torus else "gpu"]
        head = m.padded_vocabulary * (2 * D + 2 * min(rows, tokens) + 2 * D) / t
        return {
            "parameters": 4.0 * state,
            "optimizer": self._local_moments,
            "bfloat16 copy": 2.0 * state,
            "gradients": (6.0 if accumulates else 2.0) * trains,
            "layer inputs": 2.0 * m.n_layers * tokens * D / t,
            "kept for the backward pass": 2.0 * m.n_layers * tokens * saved[layout.remat] / t,
            "one layer, or the logits": 2.0 * max(working, head),
        }

    @property
    def peak_bytes(self) -> float:
        """Bytes per device."""
        return sum(self.memory.values())

    @property
    def budget_bytes(self) -> float:
        """Bytes per device that a layout may use."""
        return USABLE * self.slice.chip.hbm / self.slice.chip.devices

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.budget_bytes

    @cached_property
    def flops(self) -> dict[str, float]:
        """Model FLOPs, recomputed FLOPs, and the attention share of the model FLOPs."""
        m, layout = self.experiment.model, self.layout
        tokens = self.experiment.train.batch_tokens / self.slice.devices
        D, F, A = m.d_model, m.d_ff, m.n_heads * m.d_head
        recomputed = {"none": 0, "dots": 0, "mlp": D * F, "full": 4 * D * A + D * F}[layout.remat]
        attention = 4 * A * self._visible_per_token
        model = flops_per_token(m) * tokens
        return {
            "model": model,
            "recomputed": (
                2 * m.n_layers * recomputed + (attention if layout.remat == "full" else 0)
            )
            * tokens,
            "attention": 3 * attention * tokens,
        }

    @cached_property
    def wire(self) -> dict[str, float]:
        """Bytes that a device sends: weights (fsdp), tokens (tensor ring), gradients (data)."""
        m, layout = self.experiment.model, self.layout
        microbatches = self.experiment.batch_sequences / layout.microbatch
        D, F, A, t, f, d = (
            m.d_model,
            m.d_ff,
            m.n_heads * m.d_head,
            layout.tensor,
            layout.fsdp,
            layout.data,
        )
        layer = 2.0 * (4 * D * A + 2 * D * F) / t
        embedding = 2.0 * m.padded_vocabulary * D / t
        # All-gather in the forward and backward passes, reduce-scatter of the gradients.
        weights = (2 + doubled(self.slice, layout)) * (m.n_layers * layer + embedding) * (f - 1) / f
        stream = 2.0 * layout.windows * m.context * D * (t - 1) / t
        # Ring passes into and out of attention and MLP, forward and backward; the backward pass
        # gathers the inputs again.
        passes = {"none": 10, "dots": 10, "mlp": 11, "full": 13}[layout.remat]
        return {
            "weights": weights * microbatches,
            "tokens": (passes * m.n_layers + 4) * stream * microbatches,
            "replicas": 2 * 4.0 * self._local_trained * (d - 1) / d,
        }

    @cached_property
    def hbm_bytes(self) -> float:
        """HBM traffic in bytes of elementwise operations and weights."""
        m, layout = self.experiment.model, self.layout
        tokens = self.experiment.train.batch_tokens / self.slice.devices
        D, F, A = m.d_model, m.d_ff, m.n_heads * m.d_head
        once = 2.0 * (20 * D + 16 * A + 6 * F)
        passes = {"none": 3, "dots": 3.3, "mlp": 3.6, "full": 4}[layout.remat]
        microbatches = self.experiment.batch_sequences / layout.microbatch
        weights = 3 * 2 * 2.0 * (4 * D * A + 2 * D * F) / layout.tensor * microbatches
        return m.n_layers * (passes * once * tokens + weights)

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Seconds of each component of the step, as if it ran alone."""
        chip, n = self.slice.chip, self.slice.chip.devices
        rate = chip.peak * chip.matmul / n
        f = self.flops
        links = link_rates(self.slice, self.layout)
        return {
            "compute": (f["model"] + f["recomputed"] - f["attention"]) / rate
            + f["attention"] / (rate * ATTENTION),
            "elementwise": self.hbm_bytes / (chip.hbm_rate / n),
            "weights": self.wire["weights"] / links["fsdp"],
            "tokens": self.wire["tokens"] / links["tensor"],
            "replicas": self.wire["replicas"] / links["data"],
            "update": 28.0 * self._local_trained / (chip.hbm_rate / n),
        }

    @property
    def step_s(self) -> float:
        """Seconds per step of a full batch."""
        s = self.seconds
        work, wire = s["compute"] + s["elementwise"], s["weights"] + s["tokens"]
        inner = max(work, wire) + EXPOSED * min(work, wire)
        return inner + s["replicas"] + s["update"]

    @property
    def mfu(self) -> float:
        """Model FLOPs over the peak of all devices."""
        return self.flops["model"] / (self.step_s * self.slice.chip.peak / self.slice.chip.devices)

    @property
    def tokens_per_s(self) -> float:
        return self.experiment.train.batch_tokens / self.step_s

    @property
    def days(self) -> float:
        """Days to the experiment's last token, ignoring the batch-size ramp."""
        return self.experiment.train.tokens / self.tokens_per_s / 86400

    @property
    def chip_hours(self) -> float:
        return self.days * 24 * self.slice.chips

    @property
    def limit(self) -> str:
        """The bottleneck of the step."""
        s = self.seconds
        if s["compute"] + s["elementwise"] < s["weights"] + s["tokens"]:
            return "interconnect (weights)" if s["weights"] > s["tokens"] else "interconnect (ring)"
        if s["replicas"] > 0.5 * s["compute"]:
            return "gradients between replicas"
        return "memory bandwidth" if s["elementwise"] > s["compute"] else "matrix products"

    @cached_property
    def _local_elements(self) -> float:
        """Parameters stored per device."""
        return sum(self._local_sizes.values())

    @cached_property
    def _local_trained(self) -> float:
        """Trained parameters per device, which have gradients and optimizer moments."""
        return sum(self._local_sizes[path] for path in trained(self.experiment))

    @cached_property
    def _local_moments(self) -> float:
        """Bytes of optimizer state per device."""
        return sum(
            self.experiment.optimizer.state_bytes(path) * self._local_sizes[path]
            for path in trained(self.experiment)
        )

    @cached_property
    def _local_sizes(self) -> dict[str, float]:
        sizes: dict[str | tuple[str, ...] | None, int] = {
            "fsdp": self.layout.fsdp,
            "tensor": self.layout.tensor,
        }
        return {
            path: math.prod(spec.shape) / math.prod(sizes.get(RULES[axis], 1) for axis in spec.axes)
            for path, spec in named_specs(param_specs(self.experiment.model))
        }

    @property
    def _visible_per_token(self) -> float:
        """Mean number of keys visible to a token, summed over layers."""
        m = self.experiment.model
        bands = [None if m.is_dense(layer) else m.band for layer in range(m.n_layers)]
        return sum(visible_pairs(m.context, band) for band in bands) / m.context


def doubled(slice: Slice, layout: Layout) -> int:
    """Ratio of the traffic of libtpu's reduce-scatter to the minimum.

    Over two axes of a 2D torus, libtpu 0.0.42.1 replaces a reduce-scatter by an all-reduce (seen
    in the compiled HLO). It would also replace all-gathers over three axes; those run in two
    stages here.
    """
    others = list(slice.shape)
    if layout.tensor in others:
        others.remove(layout.tensor)
    return 2 if slice.chip.torus == 2 and layout.fsdp > max(others, default=layout.fsdp) else 1


def link_rates(slice: Slice, layout: Layout) -> dict[str, float]:
    """Bytes/s that a device sends along each mesh axis."""
    chip = slice.chip
    if not chip.torus:
        inside = chip.link * RING_SHARE
        node = max(1, chip.domain // layout.tensor)
        # Each GPU of a node carries an equal part of the node's traffic to the next node.
        between = chip.outer * min(node, layout.fsdp) * RING_SHARE
        return {
            "tensor": inside if layout.tensor <= chip.domain else chip.outer * RING_SHARE,
            "fsdp": inside if layout.fsdp * layout.tensor <= chip.domain else min(inside, between),
            "data": inside if slice.chips <= chip.domain else chip.outer * RING_SHARE,
        }
    ways = {size: 2 if size % chip.wraps == 0 else 1 for size in slice.shape}
    rate = chip.link * RING_SHARE / chip.devices
    # The `tensor` ring uses both directions of a torus axis if it is exactly that axis, otherwise
    # one direction. `fsdp` uses at most two of the other axes: a third one is a separate stage with
    # little to send (mesh.py).
    tensor = ways.get(layout.tensor, 1)
    others = list(slice.shape)
    if layout.tensor in others:
        others.remove(layout.tensor)
    fsdp = sum([ways[size] for size in others if size > 1][:2]) or 1
    return {
        "tensor": rate * tensor,
        "fsdp": rate * (fsdp if layout.fsdp > 1 else 1),
        "data": chip.outer * RING_SHARE / chip.devices if slice.slices > 1 else rate,
    }
