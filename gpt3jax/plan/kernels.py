"""The kernels of a compiled step: their FLOPs, their bytes, and the time that these allow.

A kernel is an instruction of the compiled program that the device runs by itself: a fusion, a
matrix product, an attention kernel or a collective. Its time is that of its FLOPs or of its bytes
at the rates that the chip's kernels reach, whichever is longer; kernels that overlap, as transfers
do, are counted in full. `RATES` were chosen from steps measured on an H200 (docs/benchmarks.md).

Bytes are those of results and operands. An operand that a fusion reads only through slices counts
as the slices, and one that it updates in place as the update. Branches, as for dense and banded
layers in a loop, count as taken equally often.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from gpt3jax.model.param_specs import visible_pairs
from gpt3jax.plan.hlo import COLLECTIVES, PRODUCTS, Instruction, computations, search, trips
from gpt3jax.runtime.chips import Chip

NOT_RUN = (
    "parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all", "copy-done",
    "async-start", "async-done",
)  # fmt: skip
CONTAINERS = ("while", "call", "conditional")
SLICES = r"(?:dynamic-slice|slice|gather)\("
PARTS = ("embed", "attention", "mlp", "unembed")
"""Named scopes of the model; the rest is the update."""
RATES = {"product": 0.72, "attention": 0.38, "bytes": 0.6}
"""Shares of the chip's peak FLOP/s and of its memory bandwidth."""


@dataclass(frozen=True)
class Kernel:
    """All kernels of a step that belong to one part of the model and do one kind of work."""

    part: str
    """A named scope of the model and `forward` or `backward`, or `update`."""
    work: str
    """`product`, `attention`, `elementwise`, `copy` or the name of a collective."""
    count: int
    """Executions per step and device."""
    flops: float
    """FLOPs per step and device, of products and attention only."""
    bytes: float
    """Bytes of device memory read and written, per step and device."""
    seconds: float
    limit: str
    """What takes these seconds: `FLOPs` or `bytes`; empty if the chip's rates are not known."""


def kernel_table(text: str, chip: Chip | None, dynamic: int = 1) -> list[Kernel]:
    """The kernels of a program in HLO text, in descending order of time, or of bytes.

    `dynamic` is the trip count of loops whose length is not in the program.
    """
    parts, entry = computations(text)
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0.0, 0.0, 0.0, 0.0])
    for times, each, moved in _executed(entry, 1, parts, dynamic):
        work, flops = _work(each, parts)
        share = RATES.get(work, RATES["product"]) * (2 if "matmul$f8" in each.text else 1)
        by_flops = by_bytes = 0.0
        if chip:
            by_flops = times * flops * chip.devices / (chip.peak * share)
            by_bytes = times * moved * chip.devices / (chip.hbm_rate * RATES["bytes"])
        added = (times, times * flops, times * moved, by_flops, by_bytes)
        total = sums[_part(each.text), work]
        total[:] = [a + b for a, b in zip(total, added, strict=True)]
    found = []
    for key, (count, flops, moved, by_flops, by_bytes) in sums.items():
        limit = ("FLOPs" if by_flops > by_bytes else "bytes") if chip else ""
        found.append(Kernel(*key, int(count), flops, moved, max(by_flops, by_bytes), limit))
    return sorted(found, key=lambda each: (-each.seconds, -each.bytes))


def kernel_groups(text: str) -> dict[str, tuple[str, str] | None]:
    """The part and the work of each instruction of a program, by name.

    None for loops, calls and branches, which run other instructions.
    """
    parts, _ = computations(text)
    return {
        each.name: None if each.kind in CONTAINERS else (_part(each.text), _work(each, parts)[0])
        for instructions in parts.values()
        for each in instructions
    }


def _executed(
    name: str, times: float, parts: dict[str, list[Instruction]], dynamic: int
) -> Iterator[tuple[float, Instruction, float]]:
    """Yields (executions, instruction, bytes) for each kernel of a computation and its loops."""
    sizes: dict[str, int] = {}
    for each in parts[name]:
        sizes[each.name] = each.result
        if each.kind == "while":
            condition, body = search(r"condition=%([\w.\-]+), body=%([\w.\-]+)", each.text)
            known = re.search(r'"known_trip_count":\{"n":"(\d+)"', each.text)
            runs = int(known[1]) if known else trips(condition, parts, dynamic)
            yield from _executed(body, times * runs, parts, dynamic)
        elif each.kind == "call":
            (called,) = search(r"to_apply=%([\w.\-]+)", each.text)
            yield from _executed(called, times, parts, dynamic)
        elif each.kind == "conditional":
            branches = re.findall(
                r"(?:_computation=|[{,] ?)%([\w.\-]+)", each.text.split("),", 1)[1]
            )
            branches = [branch for branch in branches if branch in parts]
            for branch in branches:
                yield from _executed(branch, times / len(branches), parts, dynamic)
        elif each.kind not in NOT_RUN:
            operands = re.findall(r"%([\w.\-]+)", each.text[: each.text.index(")")])
            read = [sizes.get(operand, 0) for operand in operands]
            body = re.search(r"calls=%([\w.\-]+)", each.text)
            fused = parts.get(body[1], []) if body else []
            yield times, each, _read(fused, read) + _written(fused, each)


def _read(fused: list[Instruction], sizes: list[int]) -> float:
    """Bytes that a fusion reads of operands of these sizes."""
    for each in fused:
        number = re.match(r"parameter\((\d+)\)", each.text)
        if number is None:
            continue
        use = re.compile(rf"%{re.escape(each.name)}\b")
        users = [other for other in fused if use.search(other.text.split(", metadata=")[0])]
        if users and all(re.match(SLICES, other.text) for other in users):
            sizes[int(number[1])] = sum(other.result for other in users)
        elif users and all(
            re.match(rf"dynamic-update-slice\(%{re.escape(each.name)}\b", other.text)
            for other in users
        ):
            sizes[int(number[1])] = 0
    return sum(sizes)


def _written(fused: list[Instruction], each: Instruction) -> float:
    """Bytes that an instruction writes: of an update in place, the update."""
    if fused and fused[-1].kind == "dynamic-update-slice":
        _, update = re.findall(r"%([\w.\-]+)", fused[-1].text)[:2]
        return next((other.result for other in fused if other.name == update), each.result)
    return each.result


def _work(each: Instruction, parts: dict[str, list[Instruction]]) -> tuple[str, float]:
    """The kind of work and the FLOPs of one execution."""
    if each.kind in COLLECTIVES:
        return each.kind, 0.0
    if each.kind in PRODUCTS:
        return "product", each.flops
    if "__cudnn$fmha" in each.text:
        return "attention", _attention_flops(each.text)
    if "tpu_custom_call" in each.text:
        return "attention", 0.0
    body = re.search(r"calls=%([\w.\-]+)", each.text)
    inner = sum(_work(other, parts)[1] for other in parts.get(body[1], [])) if body else 0.0
    if inner:
        return "product", inner
    return ("copy" if each.kind == "copy" else "elementwise"), 0.0


def _attention_flops(text: str) -> float:
    """FLOPs of cuDNN's causal attention: two products forward, five backward."""
    B, T, H, K = map(int, search(r"layout_constraints=\{\w+\[(\d+),(\d+),(\d+),(\d+)\]", text))
    band = re.search(r'"sliding_window_length": "?(\d+)', text)
    pairs = visible_pairs(T, int(band[1]) if band else None)
    return 2.0 * B * H * K * pairs * (5 if "Backward" in text else 2)


def _part(text: str) -> str:
    """The part of the model and the direction, from the named scopes."""
    scope = re.search(r'op_name="([^"]*)"', text)
    name = scope[1] if scope else ""
    part = next((part for part in PARTS if re.search(rf"\b{part}\b", name)), None)
    if part is None and "jvp(" not in name:
        return "update" if name else "other"
    return f"{part or 'layers'} {'backward' if 'transpose(' in name else 'forward'}"


def total_seconds(kernels: list[Kernel]) -> float:
    """The estimated time of all kernels, one after another."""
    return math.fsum(each.seconds for each in kernels)
