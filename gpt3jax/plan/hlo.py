"""Communication and matrix-product FLOPs of a compiled program, parsed from its HLO text.

Bytes are those sent by one device if a collective over n devices runs as a ring: (n-1)/n of the
full array for an all-gather or reduce-scatter, twice that for an all-reduce, and the operand for a
collective-permute. The body of a loop is multiplied by its trip count.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1,
}  # fmt: skip
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
PRODUCTS = ("dot", "convolution", "cublas")


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind and group size in one step."""

    kind: str
    group: int
    """Devices per group."""
    count: int
    bytes_sent: float
    """Bytes sent per device, in total."""


@dataclass(frozen=True)
class Compiled:
    """Properties of one compiled step; bytes and FLOPs are per device."""

    peak_bytes: int
    seconds: float
    """Compile time."""
    collectives: list[Collective]
    kernels: dict[str, int]
    product_flops: float
    """FLOPs of matrix products including recomputation, excluding those inside custom kernels."""
    scatters: list[str]
    """Operations that write by atomics on GPUs (see `scatters`)."""
    text: str = field(repr=False)
    """The program in HLO text."""
    microbatches: int
    """Trip count of the loop over microbatches, which is not in the program."""


@dataclass(frozen=True)
class Instruction:
    """An instruction of a computation."""

    name: str
    kind: str
    result: int
    """Size of the result in bytes."""
    text: str
    flops: float = 0.0
    """FLOPs, if this is a matrix product."""


def collectives(text: str, dynamic: int = 1) -> list[Collective]:
    """Returns the collectives of a program in HLO text, in descending order of bytes sent.

    `dynamic` is the trip count of loops whose length is not in the program.
    """
    parts, entry = computations(text)
    sums: dict[tuple[str, int], list[float]] = defaultdict(lambda: [0, 0.0])
    chains = set()
    for times, loop, instruction in _walk(entry, 1, entry, parts, dynamic):
        if instruction.kind in PRODUCTS:
            continue
        # A collective fused with several products appears once in each, with the same chain_id.
        if chain := re.search(r'chain_id="(\d+)"', instruction.text):
            if (loop, chain.group(1)) in chains:
                continue
            chains.add((loop, chain.group(1)))
        kind, group = instruction.kind, _group(instruction.text)
        sums[kind, group][0] += times
        sums[kind, group][1] += times * _sent(kind, group, instruction.result)
    totals = [Collective(*key, int(count), sent) for key, (count, sent) in sums.items()]
    return sorted(totals, key=lambda each: -each.bytes_sent)


def product_flops(text: str, dynamic: int = 1) -> float:
    """Returns the matrix-product FLOPs per device; loops count with their trip counts."""
    parts, entry = computations(text)
    return sum(
        times * instruction.flops
        for times, _, instruction in _walk(entry, 1, entry, parts, dynamic)
    )


def kernels(text: str) -> dict[str, int]:
    """Returns the number of call sites of each custom kernel."""
    counts: dict[str, int] = defaultdict(int)
    for line in text.splitlines():
        if 'custom_call_target="tpu_custom_call"' in line:
            name = re.search(r"%?([\w.\-]+) = ", line)
            counts[re.sub(r"[.\d]+$", "", name.group(1)) if name else "kernel"] += 1
        elif library := re.search(r'custom_call_target="__(cu(?:dnn|blas)[\w$]+)"', line):
            counts[library.group(1)] += 1
    return dict(counts)


def scatters(text: str) -> list[str]:
    """Returns the operations of the model that scatter to indices which may repeat.

    On GPUs they write by atomics, in an order that differs from run to run, and so do the bits.
    """
    found = []
    for line in text.splitlines():
        if re.search(r" (?:select-and-)?scatter\(", line) and "unique_indices=true" not in line:
            name = re.search(r'op_name="([^"]*)"', line) or re.search(r"%([\w.\-]+) = ", line)
            found.append(name[1] if name else line.strip())
    return found


def _walk(
    name: str, times: int, loop: str, parts: dict[str, list[Instruction]], dynamic: int
) -> Iterator[tuple[int, str, Instruction]]:
    """Yields (execution count, enclosing loop, instruction) for each collective and matrix product
    of a computation and its callees."""
    for each in parts[name]:
        if each.kind == "while":
            condition, body = search(r"condition=%([\w.\-]+), body=%([\w.\-]+)", each.text)
            known = re.search(r'"known_trip_count":\{"n":"(\d+)"', each.text)
            runs = times * (int(known[1]) if known else trips(condition, parts, dynamic))
            yield from _walk(body, runs, body, parts, dynamic)
        elif each.kind in COLLECTIVES or each.kind in PRODUCTS:
            yield times, loop, each
        elif called := re.search(r"(?:calls|to_apply)=%([\w.\-]+)", each.text):
            inner = called.group(1)
            if inner.startswith("all-reduce-scatter"):
                reduce = next(i for i in parts[inner] if i.kind == "all-reduce")
                size = reduce.result // max(1, _group(reduce.text))
                yield times, loop, Instruction(each.name, "reduce-scatter", size, reduce.text)
            elif each.kind != "reduce":
                yield from _walk(inner, times, loop, parts, dynamic)


def search(pattern: str, text: str) -> tuple[str, ...]:
    """Groups of a pattern that HLO text of this kind always contains."""
    match = re.search(pattern, text)
    assert match, f"no {pattern} in {text[:200]}"
    return match.groups()


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Parses the program into computations by name, and the name of the entry computation."""
    parts: dict[str, list[Instruction]] = {}
    current, entry = "", ""
    shapes: dict[str, list[int]] = {}
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%(\S+) .*\{$", line):
            current = header.group(2)
            parts[current], shapes = [], {}
            entry = current if header.group(1) else entry
        elif current and (match := re.match(r"\s+(?:ROOT )?%(\S+) = (.*)", line)):
            name, text = match.groups()
            parts[current].append(_instruction(name, text, shapes))
            shapes[name] = _sizes(text)
    return parts, entry


def _instruction(name: str, text: str, shapes: dict[str, list[int]]) -> Instruction:
    shape, rest = _split_shape(text)
    kind = rest[: rest.index("(")]
    if kind == "collective-permute-start":
        shape = shape[: shape.index("}, ") + 1] if "}, " in shape else shape
    elif kind in ("all-gather-start", "reduce-scatter-start"):
        shape = _last_element(shape)
    elif kind == "custom-call" and '"__cublas$' in rest:
        kind = "cublas"
        # The second element is a workspace.
        shape = shape[: shape.index("}, ") + 1] if "}, " in shape else shape
    flops = _flops(kind, _sizes(shape), rest, shapes) if kind in PRODUCTS else 0.0
    return Instruction(name, kind.removesuffix("-start"), _bytes(shape), rest, flops)


def _flops(kind: str, result: list[int], text: str, shapes: dict[str, list[int]]) -> float:
    """FLOPs of a matrix product: 2 x result elements x contracted elements."""
    left, right = (shapes[name] for name in re.findall(r"%([\w.\-]+)", text[: text.index(")")])[:2])
    if kind != "convolution":
        (dims,) = search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)', text)
        axes = re.findall(r"\d+", dims)
        return 2.0 * math.prod(result) * math.prod(left[int(n)] for n in axes)
    # On TPUs matrix products are convolutions. `dim_labels` names the axes of both operands and of
    # the result; the window says how each spatial axis (0, 1, ...) is contracted.
    left_dims, right_dims, result_dims = search(r"dim_labels=(\w+)_(\w+)->(\w+)", text)
    elements = result[result_dims.index("b")] * result[result_dims.index("f")]
    flops = 2.0 * elements * right[right_dims.index("i")]
    for i, window in enumerate(_windows(text)):
        axis = str(i)
        flops *= _valid_taps(left[left_dims.index(axis)], result[result_dims.index(axis)], window)
    return flops


def _windows(text: str) -> list[dict[str, list[int]]]:
    """Returns `size`, `stride`, `pad` and so on for each spatial axis."""
    match = re.search(r"window=\{(.*?)\}", text)
    fields = dict(each.split("=") for each in match.group(1).split()) if match else {}
    parts = {
        name: [list(map(int, n.split("_"))) for n in v.split("x")] for name, v in fields.items()
    }
    return [
        {name: values[axis] for name, values in parts.items()}
        for axis in range(len(parts.get("size", ())))
    ]


def _valid_taps(left: int, result: int, window: dict[str, list[int]]) -> int:
    """Number of window taps along an axis that read an element rather than padding."""
    (size,), (stride,) = window["size"], window.get("stride", [1])
    (rhs_dilate,), (lhs_dilate,) = window.get("rhs_dilate", [1]), window.get("lhs_dilate", [1])
    pad = window.get("pad", [0, 0])[0]
    taps = (out * stride + tap * rhs_dilate - pad for out in range(result) for tap in range(size))
    return sum(0 <= i < left * lhs_dilate and i % lhs_dilate == 0 for i in taps)


def _sizes(text: str) -> list[int]:
    """Dimensions of the first array in a shape."""
    match = re.search(r"\[([\d,]*)\]", text)
    return [int(n) for n in match.group(1).split(",") if n] if match else []


def _split_shape(text: str) -> tuple[str, str]:
    """Splits `f32[2]{0} add(...)` into the shape and the rest. Tuple shapes contain brackets."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == " " and depth == 0:
            return text[:place], text[place + 1 :]
    return text, "("


def _last_element(shape: str) -> str:
    """Last element of a tuple shape: an async collective's result, which follows its operands."""
    depth, start = 0, 0
    for place, letter in enumerate(shape):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 1:
            start = place + 1
    return shape[start:]


def _bytes(shape: str) -> int:
    arrays = re.findall(r"\b([a-z]+\d*(?:e\d+m\d+(?:fn)?)?)\[([\d,]*)\]", shape)
    return sum(
        BYTES.get(dtype, 0) * math.prod(int(n) for n in sizes.split(",") if n)
        for dtype, sizes in arrays
    )


def trips(condition: str, parts: dict[str, list[Instruction]], dynamic: int) -> int:
    """Trip count of a loop: the constant that its counter is compared with."""
    constants = [
        int(number)
        for each in parts[condition]
        if each.kind == "constant"
        for number in re.findall(r"constant\((\d+)\)", each.text)
    ]
    return max(constants, default=dynamic)


def _group(text: str) -> int:
    """Devices in one group of a collective."""
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(match.group(1))
    if match := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match.group(2)))
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return match.group(1).count(",") + 1
    return 1


def _sent(kind: str, group: int, result: int) -> float:
    """Bytes that a device sends in a ring, given the bytes of the result."""
    if kind == "collective-permute":
        return result
    share = (group - 1) / max(1, group)
    return result * {"all-reduce": 2 * share, "reduce-scatter": group - 1}.get(kind, share)
